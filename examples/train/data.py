"""From text to tokens: reading the text files, training the tokenizer, cutting the stream into windows.

python data.py held-out FILE > TEXT      the held-out text as it is measured: without the lines that end stories
python data.py tokens FOLDER FILE        its tokens under a model folder's tokenizer, as `evaluate.py` sees them
"""

import pathlib
import re
import sys

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

BOUNDARY = "<|endoftext|>"  # a line of the text files by itself; as a token both BOS and EOS

# A word keeps the space before it. English contractions ('s, 'll) are pieces of their own. Punctuation takes along the
# line breaks after it, which saves a token in twenty in stories: they are full of short paragraphs of speech.
PIECES = r"'(?:s|t|ll|re|ve|d|m)(?![A-Za-z])| ?[A-Za-z]+| ?[0-9]| ?[^\sA-Za-z0-9]+\n*|\s*\n+|\s+(?!\S)|\s+"


def read_text(path: str) -> str:
    """The whole file, decompressed if its name ends in .zst."""
    data = pathlib.Path(path).read_bytes()
    if path.endswith(".zst"):
        import zstandard

        data = zstandard.ZstdDecompressor().decompressobj().decompress(data)
    return data.decode("utf-8")


def documents(text: str) -> list[str]:
    """The stories between the boundary lines."""
    return [story for story in text.split(BOUNDARY + "\n") if story.strip()]


def without_boundaries(text: str) -> str:
    """The text that perplexity is measured on: all lines but those that are exactly the boundary."""
    return re.sub(r"(?m)^<\|endoftext\|>(\n|\Z)", "", text)


def train_tokenizer(texts: list[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE in the form that Hugging Face's tokenizer.json has for DeepSeek's models."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1,  # the boundary comes last, so that ids below it are the BPE's own
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator((story for text in texts for story in documents(text)), trainer)
    tokenizer.add_special_tokens([BOUNDARY])
    return tokenizer


def encode_stories(tokenizer: Tokenizer, texts: list[str]) -> np.ndarray:
    """All stories in one stream, each followed by the boundary token."""
    boundary = tokenizer.token_to_id(BOUNDARY)
    stream: list[int] = []
    for text in texts:
        for encoding in tokenizer.encode_batch(documents(text), add_special_tokens=False):
            stream.extend(encoding.ids)
            stream.append(boundary)
    return np.array(stream, dtype=np.int32)


def encode_plain(tokenizer: Tokenizer, text: str) -> np.ndarray:
    """The text as bytes alone: a boundary spelled out in the text does not become the special token."""
    tokenizer.encode_special_tokens = True
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    tokenizer.encode_special_tokens = False
    return np.array(ids, dtype=np.int32)


class Windows:
    """Batches of windows of `context` tokens in an order that only (seed, epoch, context) decide.

    Every window is read as perplexity will be measured: the boundary token first, then predict all `context` tokens.
    Each epoch shifts the cuts, so that no token is always the first of its window.
    """

    def __init__(self, stream: np.ndarray, boundary: int, context: int, batch: int, seed: int):
        self.stream, self.boundary, self.context, self.batch, self.seed = stream, boundary, context, batch, seed
        self.plan(0, 0)

    def plan(self, epoch: int, cursor: int) -> None:
        """Go to the `cursor`th batch of an epoch."""
        rng = np.random.default_rng((self.seed, epoch, self.context))
        shift = int(rng.integers(self.context))
        count = (len(self.stream) - shift) // self.context
        if count < self.batch:
            raise ValueError(f"the text has {len(self.stream)} tokens, too few for one batch of {self.batch} windows")
        self.starts = shift + self.context * rng.permutation(count)
        self.epoch, self.cursor = epoch, cursor

    def next(self) -> tuple[np.ndarray, np.ndarray]:
        """(inputs, targets), both [batch, context]."""
        if (self.cursor + 1) * self.batch > len(self.starts):
            self.plan(self.epoch + 1, 0)
        starts = self.starts[self.cursor * self.batch : (self.cursor + 1) * self.batch]
        self.cursor += 1
        targets = self.stream[starts[:, None] + np.arange(self.context)].astype(np.int64)
        inputs = np.concatenate((np.full((self.batch, 1), self.boundary), targets[:, :-1]), 1)
        return inputs, targets


def main() -> None:
    if sys.argv[1] == "held-out":
        sys.stdout.write(without_boundaries(read_text(sys.argv[2])))
    else:
        tokenizer = Tokenizer.from_file(f"{sys.argv[2]}/tokenizer.json")
        print(*encode_plain(tokenizer, read_text(sys.argv[3])))


if __name__ == "__main__":
    main()
