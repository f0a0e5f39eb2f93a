"""Talks, and keeps the conversation in a file; Ctrl-C stops a reply. Usage: chat.py MODEL FILE."""

import sys
from pathlib import Path

import dsv2


def main(path: str, file: str) -> None:
    """Answer lines until there are no more."""
    with dsv2.Model(path) as model, model.session() as session:
        if Path(file).exists():
            print(f"(going on after {session.restore(file)} tokens)")
        for line in sys.stdin:
            try:
                for text in session.chat(line.strip()):
                    print(text, end="", flush=True)
            except KeyboardInterrupt:
                print(" ...", end="")
            print()
            session.save(file, append=True)


main(*sys.argv[1:])
