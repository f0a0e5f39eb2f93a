"""Continues a text. Usage: hello.py MODEL [PROMPT]."""

import sys

import dsv2


def main(path: str, prompt: str = "Once upon a time") -> None:
    """Print the text as it comes."""
    with dsv2.Model(path) as model, model.session() as session:
        for text in session.generate(prompt, max_tokens=100, sampling=dsv2.Sampling(temperature=0.7, seed=1)):
            print(text, end="", flush=True)
        print()


main(*sys.argv[1:])
