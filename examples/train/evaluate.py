"""Bits per byte and expert balance on held-out text, by the rule that `dsv2 perplexity` follows.

The text is encoded once, special tokens not parsed, and cut into windows of `context` tokens without overlap, the last
one as short as it comes. Each window is read from an empty context with the BOS token before it, so that every token of
the text is predicted once. Bits per byte = sum of the losses in nats / ln 2 / bytes of the text.

    python evaluate.py FOLDER TEXT --context 2048
"""

import argparse
import json
import math

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer

import data
from folder import load_folder
from model import Model, rope_tables


@torch.no_grad()
def evaluate(model: Model, ids: np.ndarray, boundary: int, context: int, every: int = 1, tokens: int = 8192) -> dict:
    """Nats per token and the experts' loads over each `every`th window."""
    device = next(model.parameters()).device
    cos, sin = (table.to(device) for table in rope_tables(model.config, context))
    windows = [ids[at : at + context] for at in range(0, len(ids), context)][::every]
    nats, count, loads = 0.0, 0, 0
    batch = max(1, tokens // context)
    whole = [w for w in windows if len(w) == context]
    groups = [whole[i : i + batch] for i in range(0, len(whole), batch)]
    groups += [[w] for w in windows if len(w) < context]
    for group in groups:
        targets = torch.from_numpy(np.stack(group)).long().to(device)
        inputs = F.pad(targets[:, :-1], (1, 0), value=boundary)
        length = targets.shape[1]
        logits, _, load = model(inputs, cos[:length], sin[:length])
        nats += F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="sum").item()
        count += targets.numel()
        loads = loads + load.cpu().double()
    return {"nats_per_token": nats / count, "nats": nats, "tokens": count, "loads": loads}


def bits_per_byte(nats: float, text_bytes: int) -> float:
    return nats / math.log(2) / text_bytes


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("folder")
    p.add_argument("text", help="plain text; `data.py held-out` makes it")
    p.add_argument("--context", type=int, default=512)
    p.add_argument("--no-extension", action="store_true", help="ignore the folder's rope_scaling")
    p.add_argument("--every", type=int, default=1, help="only each so-many-eth window (bytes are then counted in proportion)")
    a = p.parse_args()
    model, config = load_folder(a.folder)
    if a.no_extension:
        model.config.rope_factor = 1.0
    if torch.cuda.is_available():
        model = model.cuda()
    text = data.read_text(a.text)
    ids = data.encode_plain(Tokenizer.from_file(f"{a.folder}/tokenizer.json"), text)
    found = evaluate(model, ids, config["bos_token_id"], a.context, a.every)
    size = len(text.encode()) * found["tokens"] / len(ids)
    loads = found.pop("loads")
    mean = loads.mean(1, keepdim=True)
    print(
        json.dumps(
            {
                **found,
                "bytes": size,
                "bits_per_byte": round(bits_per_byte(found["nats"], size), 5),
                "max_over_mean_load": [round(x, 3) for x in (loads / mean).amax(1).tolist()],
                "min_over_mean_load": [round(x, 3) for x in (loads / mean).amin(1).tolist()],
            }
        )
    )


if __name__ == "__main__":
    main()
