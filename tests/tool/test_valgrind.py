"""Valgrind finds no error and no leak while the dsv2 command uses the library for all that it does.

Usage: test_valgrind.py VALGRIND DSV2 GOLDENS
"""

import os
import subprocess
import sys
import tempfile

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import tiny_model

VALGRIND, DSV2, GOLDENS = map(os.path.abspath, sys.argv[1:])
OPTIONS = ["--quiet", "--error-exitcode=99", "--leak-check=full", "--errors-for-leak-kinds=definite,indirect,possible"]


def main():
    with tempfile.TemporaryDirectory() as folder:
        model = tiny_model.make(os.path.join(GOLDENS, "lite"), os.path.join(folder, "lite"))
        pack, saved, text = (os.path.join(folder, name) for name in ("lite.dsv2", "saved", "text"))
        with open(text, "wb") as file:
            file.write(b"It was a long road. " * 5)
        generate = ["--prompt", "It was", "--max-tokens", "4", "--threads", "2"]
        commands = [
            ["generate", model, *generate, "--save", saved],
            ["generate", model, *generate, "--restore", saved],
            ["pack", model, pack, "--type", "q4_k"],
            ["inspect", pack, "--verify"],
            # Valgrind 3.19 stops at a form of vmovq that compilers use in the AVX2 kernels of interleaved weights.
            ["generate", pack, *generate, "--kernels", "c"],
            ["perplexity", pack, text, "--kernels", "c"],
            ["experts", model, text],
            ["generate", os.path.join(folder, "nothing"), *generate],
        ]
        bad = 0
        for command in commands:
            result = subprocess.run([VALGRIND, *OPTIONS, DSV2, *command], capture_output=True, check=False)
            expected = 1 if command[1].endswith("nothing") else 0
            print(command[0], result.returncode)
            if result.returncode != expected or b"==" in result.stderr:
                bad += 1
                print(result.stderr.decode("utf-8", "replace"))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
