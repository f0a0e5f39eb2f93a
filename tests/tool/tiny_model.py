"""Makes a folder that the tools can open: a golden checkpoint and a byte-level tokenizer of its size."""

import array
import json
import os
import shutil
import struct


def byte_letters():
    """The letter that byte-level BPE writes for each byte, as GPT-2 introduced them."""
    shown = list(range(33, 127)) + list(range(161, 173)) + list(range(174, 256))
    letters, spare = {}, 256
    for byte in range(256):
        if byte in shown:
            letters[byte] = chr(byte)
        else:
            letters[byte] = chr(spare)
            spare += 1
    return letters


def tokenizer(vocab_size, bos, eos):
    """Ids 0 and 1 are special, 2 to 257 are bytes, the rest pairs of lower-case letters."""
    special = ["<\uff5cbegin\u2581of\u2581sentence\uff5c>", "<\uff5cend\u2581of\u2581sentence\uff5c>"]
    letters = byte_letters()
    vocab = {letters[byte]: 2 + byte for byte in range(256)}
    pairs = [(a, b) for a in "etaoinshrdlu" for b in "etaoinshrdlu"]
    merges = []
    for a, b in pairs[: vocab_size - 258]:
        vocab[a + b] = 258 + len(merges)
        merges.append(f"{a} {b}")
    return {
        "version": "1.0",
        "added_tokens": [
            {"id": i, "content": text, "special": True, "normalized": False, "single_word": False, "lstrip": False, "rstrip": False}
            for i, text in ((bos, special[0]), (eos, special[1]))
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "vocab": vocab, "merges": merges},
    }


def make(golden, folder, change=None):
    """Copies the golden checkpoint into `folder`, with a tokenizer. `change` edits its configuration. Returns `folder`."""
    shutil.copytree(golden, folder)
    os.chmod(folder, 0o755)
    path = os.path.join(folder, "config.json")
    with open(path, encoding="utf-8") as file:
        config = json.load(file)
    with open(os.path.join(folder, "tokenizer.json"), "w", encoding="utf-8") as file:
        json.dump(tokenizer(config["vocab_size"], config["bos_token_id"], config["eos_token_id"]), file)
    if change is not None:
        change(config)
        os.chmod(path, 0o644)
        with open(path, "w", encoding="utf-8") as file:
            json.dump(config, file)
    return folder


def read_tensor(path, name):
    """One tensor of a safetensors file as an array, with its shape."""
    with open(path, "rb") as file:
        data = file.read()
    (size,) = struct.unpack("<Q", data[:8])
    entry = json.loads(data[8 : 8 + size])[name]
    begin, end = entry["data_offsets"]
    values = array.array({"I32": "i", "F32": "f"}[entry["dtype"]])
    values.frombytes(data[8 + size + begin : 8 + size + end])
    return values, entry["shape"]
