"""Draws how a text uses the experts. Usage: experts.py MODEL TEXTFILE IMAGE. Needs: pip install dsv2[plot] tqdm."""

import sys
from pathlib import Path

from matplotlib import pyplot
from tqdm import tqdm

import dsv2


def main(path: str, text_file: str, image: str) -> None:
    """Feed the text with a progress bar, print the most used expert of each layer, and draw them all."""
    with dsv2.Model(path) as model, model.session() as session:
        tokens = model.tokenizer.encode(Path(text_file).read_text(encoding="utf-8"), bos=True)
        with tqdm(unit="token-layer") as bar:
            session.feed(tokens[: model.info.max_position_embeddings], progress=dsv2.show_progress(bar))
        routing = session.routing()
    for layer, chosen in zip(routing.layers, routing.chosen):
        print(f"layer {layer}: expert {chosen.argmax()}, {routing.balance(layer).max_over_mean:.2f} times the mean")
    routing.heat_map()
    pyplot.savefig(image)


main(*sys.argv[1:])
