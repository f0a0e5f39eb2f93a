"""Train a small DeepSeek-V2, from text files to a checkpoint; see README.md.

The recipe is that of the report, section 3.1, at a size a laptop can train: AdamW, a warm-up and a learning rate that
falls in steps, gradient clipping, the three balance losses, and at the end YaRN's extension of the context.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import time

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from tokenizers import Tokenizer

import data
from evaluate import evaluate
from model import Config, Model, rope_tables


def arguments() -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("text", nargs="+", help="training text, UTF-8, plain or .zst; a line <|endoftext|> ends each story")
    p.add_argument("--folder", required=True, help="folder for the tokenizer, the log and the checkpoint; resumed from")
    p.add_argument("--held-out", help="text to measure on now and then")
    p.add_argument("--config", help="JSON file that overrides fields of model.Config")
    p.add_argument("--tokens", type=float, default=0, help="stop after this many tokens")
    p.add_argument("--minutes", type=float, default=0, help="or after this many minutes of training, resumed time included")
    p.add_argument(
        "--stop-after-steps", type=int, default=0, help="leave early, with a checkpoint (the schedule is not changed)"
    )
    p.add_argument("--stages", default="256:0.6,512:0.87,2048:1", help="context:until, with until a share of the budget")
    p.add_argument("--batch-tokens", type=int, default=4096)
    p.add_argument("--lr", type=float, default=3e-3)
    p.add_argument(
        "--decay-at", default="0.6,0.85,0.95", help="shares of the budget at which the rate falls to 0.316 of itself"
    )
    p.add_argument("--warm-up", type=int, default=200, help="steps")
    p.add_argument("--alphas", default="0.003,0.05,0.02", help="weights of the expert, device and communication balance losses")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--log-every", type=int, default=20, help="steps")
    p.add_argument("--save-every", type=float, default=150, help="seconds")
    p.add_argument("--eval-every", type=float, default=600, help="seconds")
    p.add_argument("--threads", type=int, default=0, help="CPU threads; 0 leaves PyTorch's choice")
    p.add_argument("--fp32", action="store_true", help="no bfloat16 autocast")
    p.add_argument("--eager", action="store_true", help="no torch.compile")
    return p.parse_args()


def atomic_save(value: dict, path: pathlib.Path) -> None:
    """A kill while writing loses the new checkpoint, never the old one."""
    part = path.with_suffix(".part")
    torch.save(value, part)
    os.replace(part, path)


def tokenizer_of(run: pathlib.Path, texts: list[str], vocab_size: int) -> Tokenizer:
    path = run / "tokenizer.json"
    if not path.exists():
        data.train_tokenizer(texts, vocab_size).save(str(path))
    return Tokenizer.from_file(str(path))


def optimizer_of(model: Model, lr: float) -> torch.optim.AdamW:
    """Section 3.1.2: AdamW with beta_1 = 0.9, beta_2 = 0.95, weight decay 0.1 (not on the norms' weights)."""
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95), fused=True)


class Average:
    """A running mean of the weights over the last few hundred steps. The run measures this mean.

    The report has no such mean. With a short budget it stands in for the long tail of low learning rates.
    """

    EVERY, KEEP = 8, 0.98

    def __init__(self, model: Model):
        self.weights = {k: v.detach().clone() for k, v in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: Model, step: int) -> None:
        if step % self.EVERY == 0:
            keep = min(self.KEEP, 1 - 1 / (step / self.EVERY + 1))
            for name, value in model.state_dict().items():
                self.weights[name].lerp_(value, 1 - keep)


class Run:
    """One training run: everything that a checkpoint holds, and the loop."""

    def __init__(self, a: argparse.Namespace):
        self.a = a
        self.folder = pathlib.Path(a.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        # Started by torchrun, each process takes its share of every batch. On a CPU two processes of one thread each
        # beat one of two threads: they meet once a step, not at the end of each of its thousands of small loops.
        self.rank, self.ranks = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        if self.ranks > 1:
            if self.device == "cuda":
                torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
            dist.init_process_group("nccl" if self.device == "cuda" else "gloo")
        if a.threads:
            torch.set_num_threads(a.threads)
        torch.manual_seed(a.seed)
        config = Config(**(json.loads(pathlib.Path(a.config).read_text()) if a.config else {}))
        texts = [data.read_text(path) for path in a.text]
        if self.rank > 0:
            dist.barrier()  # until the first process has made the tokenizer
        tokenizer = tokenizer_of(self.folder, texts, config.vocab_size)
        if self.rank == 0 and self.ranks > 1:
            dist.barrier()
        self.boundary = tokenizer.token_to_id(data.BOUNDARY)
        self.stream = data.encode_stories(tokenizer, texts)
        if a.held_out:
            text = data.without_boundaries(data.read_text(a.held_out))
            self.held_out = data.encode_plain(tokenizer, text)
            self.held_out_bytes_per_token = len(text.encode()) / len(self.held_out)
        self.model = Model(config).to(self.device)
        self.optimizer = optimizer_of(self.model, a.lr)
        self.average = Average(self.model)
        self.step = self.tokens = 0
        self.seconds = 0.0
        self.context = self.epoch = self.cursor = 0
        self.stages = [(int(c), float(u)) for c, u in (s.split(":") for s in a.stages.split(","))]
        for context, _ in self.stages:
            if a.batch_tokens // context % self.ranks or a.batch_tokens < context:
                raise SystemExit(f"{self.ranks} processes cannot share {a.batch_tokens // context} windows of {context} tokens")
        self.decays = [float(x) for x in a.decay_at.split(",")]
        self.alphas = torch.tensor([float(x) for x in a.alphas.split(",")], device=self.device)
        self.checkpoint = self.folder / "checkpoint.pt"
        if self.checkpoint.exists():
            self.load()
        self.log({"event": "start", "step": self.step, "stream": len(self.stream), "config": dataclasses.asdict(config)})

    def save(self, path: pathlib.Path) -> None:
        if self.rank > 0:
            return
        names = ("step", "tokens", "seconds", "context", "epoch", "cursor")
        state = {name: getattr(self, name) for name in names}
        weights = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        extra = {"average": self.average.weights, "config": dataclasses.asdict(self.model.config)}
        atomic_save({"state": state, **weights, **extra}, path)

    def load(self) -> None:
        saved = torch.load(self.checkpoint, map_location=self.device, weights_only=True)
        self.model.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.average.weights = saved["average"]
        for name, value in saved["state"].items():
            setattr(self, name, value)

    def log(self, line: dict) -> None:
        if self.rank > 0:
            return
        with open(self.folder / "log.jsonl", "a") as f:
            f.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)

    def progress(self) -> float:
        """The share of the budget that is spent; the schedules of learning rate and context follow it."""
        by_tokens = self.tokens / self.a.tokens if self.a.tokens else 0.0
        by_time = self.seconds / (60 * self.a.minutes) if self.a.minutes else 0.0
        return max(by_tokens, by_time)

    def learning_rate(self) -> float:
        """Section 3.1.2: linear warm-up, then constant, times 0.316 at each decay."""
        decays = sum(self.progress() >= at for at in self.decays)
        return self.a.lr * min(1.0, (self.step + 1) / self.a.warm_up) * 0.316**decays

    def enter_stage(self) -> None:
        """Set up the context that the progress asks for; beyond the original context, YaRN (section 3.1.4)."""
        context = next(c for c, until in self.stages if self.progress() < until)
        if context == self.context and hasattr(self, "windows"):
            return
        if context != self.context:
            if self.context:  # the extension is compared with these weights of the old context
                self.save(self.folder / f"context-{self.context}.pt")
            self.epoch, self.cursor = (self.epoch + 1 if self.context else 0), 0
        config = self.model.config
        config.rope_factor = max(1.0, context / config.context)
        self.context = context
        self.cos, self.sin = (t.to(self.device) for t in rope_tables(config, context))
        self.windows = data.Windows(self.stream, self.boundary, context, self.a.batch_tokens // context, self.a.seed)
        self.windows.plan(self.epoch, self.cursor)
        self.forward = self.losses if self.a.eager else torch.compile(self.losses, dynamic=False)
        self.log({"event": "stage", "step": self.step, "context": context, "rope_factor": config.rope_factor})

    def autocast(self):
        return torch.autocast(self.device, dtype=torch.bfloat16, enabled=not self.a.fp32)

    def losses(self, inputs, targets, cos, sin):
        logits, balance, loads = self.model(inputs, cos, sin)
        loss = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())
        return loss, (balance * self.alphas).sum(), balance, loads

    def train_step(self) -> dict:
        share = slice(self.rank, None, self.ranks)
        inputs, targets = (torch.from_numpy(x[share]).to(self.device) for x in self.windows.next())
        self.epoch, self.cursor = self.windows.epoch, self.windows.cursor
        rate = self.learning_rate()
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        with self.autocast():
            loss, extra, balance, loads = self.forward(inputs, targets, self.cos, self.sin)
        (loss + extra).backward()
        loss, balance, loads = self.meet(loss.detach(), balance.detach(), loads)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        self.tokens += self.windows.batch * self.context
        self.average.update(self.model, self.step)
        return {"loss": loss.item(), "norm": norm.item(), "lr": rate, "balance": balance, "loads": loads}

    def meet(self, *figures: torch.Tensor) -> list[torch.Tensor]:
        """Average gradients, clock and figures over the processes, so that all go on alike."""
        now = time.monotonic()
        self.seconds, self.clock = self.seconds + now - self.clock, now
        if self.ranks == 1:
            return list(figures)
        clock = torch.tensor(self.seconds, device=self.device)
        parts = [p.grad for p in self.model.parameters()] + [clock, *(x.float() for x in figures)]
        flat = torch.cat([x.flatten() for x in parts])
        dist.all_reduce(flat)
        flat /= self.ranks
        for part, mean in zip(parts, flat.split([x.numel() for x in parts]), strict=True):
            part.copy_(mean.view_as(part))
        self.seconds = clock.item()
        return parts[-len(figures) :]

    def measure(self) -> None:
        """The averaged weights on every fourth held-out window of the current context."""
        if not self.a.held_out or self.rank > 0:
            return
        trained = {k: v.clone() for k, v in self.model.state_dict().items()}
        self.model.load_state_dict(self.average.weights)
        with self.autocast():
            found = evaluate(self.model, self.held_out, self.boundary, self.context, every=4)
        self.model.load_state_dict(trained)
        loads = found["loads"]
        nats = found["nats_per_token"]
        self.log(
            {
                "event": "held-out",
                "step": self.step,
                "tokens": self.tokens,
                "seconds": round(self.seconds),
                "context": self.context,
                "nats_per_token": round(nats, 4),
                "bits_per_byte": round(nats / np.log(2) / self.held_out_bytes_per_token, 4),
                "max_over_mean_load": [round(x, 2) for x in (loads.amax(1) / loads.mean(1)).tolist()],
                "min_over_mean_load": [round(x, 2) for x in (loads.amin(1) / loads.mean(1)).tolist()],
            }
        )

    def run(self) -> None:
        last_save = last_eval = self.seconds
        first_step = self.step
        self.clock = time.monotonic()
        sums: list[dict] = []
        while self.progress() < 1:
            self.enter_stage()
            sums.append(self.train_step())
            if self.step % self.a.log_every == 0:
                self.log(self.summary(sums))
                sums = []
            if self.seconds - last_eval > self.a.eval_every:
                self.measure()
                last_eval = self.seconds
            if self.seconds - last_save > self.a.save_every:
                self.save(self.checkpoint)
                last_save = self.seconds
            if self.a.stop_after_steps and self.step - first_step >= self.a.stop_after_steps:
                break
        self.save(self.checkpoint)
        self.measure()
        if self.ranks > 1:
            dist.destroy_process_group()

    def summary(self, sums: list[dict]) -> dict:
        loads = sum(s["loads"] for s in sums).double()
        balance = sum(s["balance"] for s in sums).sum(0) / len(sums)
        return {
            "step": self.step,
            "tokens": self.tokens,
            "seconds": round(self.seconds, 1),
            "progress": round(self.progress(), 4),
            "epoch": self.epoch,
            "context": self.context,
            "lr": round(sums[-1]["lr"], 6),
            "loss": round(sum(s["loss"] for s in sums) / len(sums), 4),
            "norm": round(sum(s["norm"] for s in sums) / len(sums), 3),
            "balance": [round(x, 4) for x in balance.tolist()],  # sums over layers of L_ExpBal, L_DevBal, L_CommBal
            "max_over_mean_load": [round(x, 2) for x in (loads.amax(1) / loads.mean(1)).tolist()],
        }


if __name__ == "__main__":
    Run(arguments()).run()
