"""python sample.py FOLDER --prompt "Once upon a time": text from an exported folder, drawn by the recipe's own model."""

import argparse

import torch
from tokenizers import Tokenizer

from folder import load_folder
from model import rope_tables


@torch.no_grad()
def main() -> None:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("folder")
    p.add_argument("--prompt", default="Once upon a time")
    p.add_argument("--tokens", type=int, default=160)
    p.add_argument("--temperature", type=float, default=0.8)
    p.add_argument("--top-p", type=float, default=0.95)
    p.add_argument("--seed", type=int, default=1)
    a = p.parse_args()
    model, config = load_folder(a.folder)
    tokenizer = Tokenizer.from_file(f"{a.folder}/tokenizer.json")
    draw = torch.Generator().manual_seed(a.seed)
    ids = [config["bos_token_id"], *tokenizer.encode(a.prompt, add_special_tokens=False).ids]
    cos, sin = rope_tables(model.config, len(ids) + a.tokens)
    for _ in range(a.tokens):  # no cache: the recipe needs no second way to compute attention
        logits, _, _ = model(torch.tensor([ids]), cos[: len(ids)], sin[: len(ids)])
        p_sorted, order = (logits[0, -1] / a.temperature).softmax(-1).sort(descending=True)
        p_sorted[p_sorted.cumsum(-1) - p_sorted > a.top_p] = 0
        ids.append(order[torch.multinomial(p_sorted, 1, generator=draw)].item())
        if ids[-1] == config["eos_token_id"]:
            break
    print(tokenizer.decode(ids))


if __name__ == "__main__":
    main()
