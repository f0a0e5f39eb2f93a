"""A smoke test of the training recipe: tiny sizes, a few steps, on the CPU.

Needs PyTorch and the rest of examples/train/requirements.txt; without them it says so and exits with 77, which meson
counts as skipped. With DSV2_BIN set to a `dsv2` program, the exported folder is opened in it too.
"""

import json
import math
import os
import pathlib
import random
import struct
import subprocess
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
RECIPE = ROOT / "examples" / "train"
sys.path.insert(0, str(RECIPE))

try:
    import numpy as np
    import torch
    from safetensors import safe_open
    from safetensors.torch import load_file
    from tokenizers import Tokenizer

    import data
    from evaluate import bits_per_byte, evaluate
    from folder import load_folder
    from model import Config, Model, balance_losses, rope_tables, route
except ImportError as missing:
    print(f"skipped: the smoke test of examples/train was not run, for want of the Python package {missing.name!r}")
    sys.exit(77)

TINY = {
    "vocab_size": 320,
    "hidden_size": 48,
    "intermediate_size": 96,
    "moe_intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "n_shared_experts": 2,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "kv_lora_rank": 24,
    "q_lora_rank": 32,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 24,
    "n_group": 4,
    "topk_group": 2,
    "context": 32,
}


def stories(seed: int, count: int) -> str:
    """Text with something to learn: sentences of one pattern over a few words, a boundary after each story."""
    rng = random.Random(seed)
    names, verbs, things = ("fox", "hen", "bear", "child"), ("saw", "took", "lost"), ("a red ball", "the old key", "some bread")
    lines = []
    for _ in range(count):
        for _ in range(rng.randint(3, 9)):
            lines.append(f"The {rng.choice(names)} {rng.choice(verbs)} {rng.choice(things)}, and that was that.\n")
        lines.append("<|endoftext|>\n")
    return "".join(lines)


def run_recipe(script: str, *arguments: object) -> str:
    command = [sys.executable, str(RECIPE / script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise AssertionError(f"{script} exited with {done.returncode}:\n{done.stderr}")
    return done.stdout


class Recipe(unittest.TestCase):
    @classmethod
    def setUpClass(cls) -> None:
        torch.set_num_threads(1)
        cls.temporary = tempfile.TemporaryDirectory()
        cls.folder = pathlib.Path(cls.temporary.name)
        (cls.folder / "text.txt").write_text(stories(1, 120))
        (cls.folder / "held_out.txt").write_text(stories(2, 12))
        (cls.folder / "config.json").write_text(json.dumps(TINY))
        cls.train("whole")
        run_recipe("folder.py", cls.folder / "whole", cls.folder / "model")

    @classmethod
    def tearDownClass(cls) -> None:
        cls.temporary.cleanup()

    @classmethod
    def train(cls, run: str, *more: object) -> None:
        """60 steps of 512 tokens: plain RoPE at contexts 16 and 32, then YaRN to 64."""
        a = ["--folder", cls.folder / run, "--config", cls.folder / "config.json", "--held-out", cls.folder / "held_out.txt"]
        a += ["--tokens", 60 * 512, "--batch-tokens", 512, "--stages", "16:0.4,32:0.8,64:1", "--warm-up", 5]
        a += ["--log-every", 5, "--threads", 1, "--fp32", "--eager"]
        run_recipe("train.py", cls.folder / "text.txt", *a, *more)

    def log_of(self, run: str) -> list[dict]:
        return [json.loads(line) for line in (self.folder / run / "log.jsonl").read_text().splitlines()]

    def test_loss_falls_and_schedules_follow_the_budget(self) -> None:
        steps = [line for line in self.log_of("whole") if "loss" in line]
        self.assertGreater(steps[0]["loss"], 0.75 * math.log(TINY["vocab_size"]))
        self.assertLess(steps[-1]["loss"], 0.6 * steps[0]["loss"])
        stages = [line for line in self.log_of("whole") if line.get("event") == "stage"]
        self.assertEqual([(s["context"], s["rope_factor"]) for s in stages], [(16, 1), (32, 1), (64, 2)])
        rates = [line["lr"] for line in steps]
        self.assertAlmostEqual(rates[-1] / max(rates), 0.316**3, places=3)

    def test_resumed_run_ends_with_the_same_weights(self) -> None:
        for stop in (17, 12, 0):  # within a stage, then across one
            self.train("resumed", "--stop-after-steps", stop)
        one, two = (torch.load(self.folder / run / "checkpoint.pt", weights_only=True) for run in ("whole", "resumed"))
        self.assertEqual(one["state"]["step"], 60)
        self.assertEqual(
            {k: v for k, v in one["state"].items() if k != "seconds"}, {k: v for k, v in two["state"].items() if k != "seconds"}
        )
        for kind in ("model", "average"):
            for name, weight in one[kind].items():
                torch.testing.assert_close(two[kind][name], weight, rtol=0, atol=1e-6, msg=f"{kind} {name}")

    def test_routing_and_balance_losses_follow_the_report(self) -> None:
        """Against plain loops over Eqs. 23-31."""
        c = Config(**TINY)
        batch, length, experts, groups, chosen, allowed = (
            2,
            40,
            c.n_routed_experts,
            c.n_group,
            c.num_experts_per_tok,
            c.topk_group,
        )
        rng = np.random.default_rng(5)
        raw = np.exp(rng.normal(size=(batch, length, experts)))
        s = raw / raw.sum(-1, keepdims=True)
        gates, ids = route(torch.from_numpy(s), c)
        found = balance_losses(torch.from_numpy(s), ids, c)
        size = experts // groups
        expected = np.zeros(3)
        for b in range(batch):
            f, p, sent = np.zeros(experts), s[b].mean(0), np.zeros(groups)
            for t in range(length):
                best = [s[b, t, d * size : (d + 1) * size].max() for d in range(groups)]
                kept = np.argsort(best)[::-1][:allowed]
                candidates = sorted((i for i in range(experts) if i // size in kept), key=lambda i: -s[b, t, i])[:chosen]
                self.assertEqual(sorted(ids[b, t].tolist()), sorted(candidates))
                np.testing.assert_allclose(sorted(gates[b, t].tolist()), sorted(s[b, t, candidates]))
                for i in candidates:
                    f[i] += experts / (chosen * length)
                for d in {i // size for i in candidates}:
                    sent[d] += groups / (allowed * length)
            group_f = np.array([f[d * size : (d + 1) * size].mean() for d in range(groups)])
            group_p = np.array([p[d * size : (d + 1) * size].sum() for d in range(groups)])
            expected += np.array([f @ p, group_f @ group_p, sent @ group_p]) / batch
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9)

    def test_model_agrees_with_deepseeks_code(self) -> None:
        golden = ROOT / "tests" / "data" / "goldens" / "full"
        model, _ = load_folder(str(golden))
        expected = load_file(golden / "expected.safetensors")
        ids = expected["input_ids"].long()
        with torch.no_grad():
            logits, _, _ = model(ids[None], *rope_tables(model.config, len(ids)))
        torch.testing.assert_close(logits[0], expected["logits"], rtol=0, atol=1e-4)

    def test_a_token_does_not_see_later_ones(self) -> None:
        model, _ = load_folder(str(self.folder / "model"))
        tables = rope_tables(model.config, 40)
        ids = torch.randint(TINY["vocab_size"], (1, 40), generator=torch.Generator().manual_seed(3))
        changed = ids.clone()
        changed[0, 25:] = (changed[0, 25:] + 7) % TINY["vocab_size"]
        with torch.no_grad():
            one, two = model(ids, *tables)[0], model(changed, *tables)[0]
        torch.testing.assert_close(one[:, :25], two[:, :25], rtol=0, atol=1e-5)
        self.assertGreater((one[:, 25:] - two[:, 25:]).abs().max().item(), 1e-3)

    def test_exported_folder_has_deepseeks_names_and_shapes(self) -> None:
        t = TINY
        hidden, inner, heads = t["hidden_size"], t["moe_intermediate_size"], t["num_attention_heads"]
        nope, rope, value = t["qk_nope_head_dim"], t["qk_rope_head_dim"], t["v_head_dim"]
        shapes = {"model.embed_tokens.weight": [320, hidden], "lm_head.weight": [320, hidden], "model.norm.weight": [hidden]}
        for layer in range(3):
            at = f"model.layers.{layer}."
            shapes |= {at + "input_layernorm.weight": [hidden], at + "post_attention_layernorm.weight": [hidden]}
            attention = {
                "q_a_proj": [32, hidden],
                "q_a_layernorm": [32],
                "q_b_proj": [heads * (nope + rope), 32],
                "kv_a_proj_with_mqa": [24 + rope, hidden],
                "kv_a_layernorm": [24],
                "kv_b_proj": [heads * (nope + value), 24],
                "o_proj": [hidden, heads * value],
            }
            shapes |= {f"{at}self_attn.{name}.weight": shape for name, shape in attention.items()}
            mlps = {"": 96} if layer == 0 else {"shared_experts.": 2 * inner} | {f"experts.{i}.": inner for i in range(8)}
            for name, width in mlps.items():
                shapes |= {f"{at}mlp.{name}{m}_proj.weight": [width, hidden] for m in ("gate", "up")}
                shapes[f"{at}mlp.{name}down_proj.weight"] = [hidden, width]
            if layer:
                shapes[at + "mlp.gate.weight"] = [8, hidden]
        with safe_open(self.folder / "model" / "model.safetensors", "pt") as f:
            self.assertEqual({name: f.get_slice(name).get_shape() for name in f.keys()}, shapes)
            self.assertEqual({f.get_slice(name).get_dtype() for name in f.keys()}, {"BF16"})
        config = json.loads((self.folder / "model" / "config.json").read_text())
        self.assertEqual(config["max_position_embeddings"], 64)
        self.assertEqual(config["rope_scaling"]["original_max_position_embeddings"], 32)
        tokenizer = Tokenizer.from_file(str(self.folder / "model" / "tokenizer.json"))
        self.assertEqual(tokenizer.id_to_token(config["bos_token_id"]), data.BOUNDARY)
        self.assertEqual(config["bos_token_id"], tokenizer.get_vocab_size() - 1)

    def test_exported_weights_are_the_averaged_ones(self) -> None:
        saved = torch.load(self.folder / "whole" / "checkpoint.pt", weights_only=True)
        reference = Model(Config(**saved["config"]))
        reference.load_state_dict({k: v.bfloat16().float() for k, v in saved["average"].items()})
        model, _ = load_folder(str(self.folder / "model"))
        ids, tables = torch.arange(60)[None], rope_tables(model.config, 60)
        with torch.no_grad():
            torch.testing.assert_close(model(ids, *tables)[0], reference(ids, *tables)[0], rtol=0, atol=1e-6)

    def test_bits_per_byte_follow_the_rule(self) -> None:
        """Window by window and token by token, by hand."""
        text = data.without_boundaries((self.folder / "held_out.txt").read_text())
        self.assertNotIn("<|endoftext|>", text)
        tokenizer = Tokenizer.from_file(str(self.folder / "model" / "tokenizer.json"))
        ids = data.encode_plain(tokenizer, text)
        self.assertEqual(tokenizer.decode(ids.tolist()), text)
        model, config = load_folder(str(self.folder / "model"))
        nats = 0.0
        with torch.no_grad():
            for at in range(0, len(ids), 48):
                window = torch.from_numpy(ids[at : at + 48]).long()
                inputs = torch.cat((torch.tensor([config["bos_token_id"]]), window))[None]
                logits = model(inputs, *rope_tables(model.config, inputs.shape[1]))[0][0]
                nats -= sum(logits[i].log_softmax(-1)[token].item() for i, token in enumerate(window))
        found = evaluate(model, ids, config["bos_token_id"], 48)
        self.assertEqual(found["tokens"], len(ids))
        self.assertAlmostEqual(found["nats"], nats, delta=1e-4 * nats)
        (self.folder / "plain.txt").write_text(text)
        printed = json.loads(run_recipe("evaluate.py", self.folder / "model", self.folder / "plain.txt", "--context", 48))
        self.assertAlmostEqual(printed["bits_per_byte"], bits_per_byte(nats, len(text.encode())), places=3)

    def test_text_never_becomes_the_boundary_token(self) -> None:
        tokenizer = Tokenizer.from_file(str(self.folder / "model" / "tokenizer.json"))
        boundary = tokenizer.token_to_id(data.BOUNDARY)
        self.assertNotIn(boundary, data.encode_plain(tokenizer, "a <|endoftext|> b").tolist())
        stream = data.encode_stories(tokenizer, ["one\n<|endoftext|>\ntwo\n<|endoftext|>\n"]).tolist()
        self.assertEqual(
            [at for at, token in enumerate(stream) if token == boundary], [stream.index(boundary), len(stream) - 1]
        )
        self.assertEqual(tokenizer.decode(stream, skip_special_tokens=True), "one\ntwo\n")

    @unittest.skipUnless(os.environ.get("DSV2_BIN"), "DSV2_BIN does not name a dsv2 program: its logits were not compared")
    def test_dsv2_gives_the_same_logits(self) -> None:
        model, config = load_folder(str(self.folder / "model"))
        ids = [config["bos_token_id"], *range(5, 60)]
        with torch.no_grad():
            expected = model(torch.tensor([ids]), *rope_tables(model.config, len(ids)))[0][0]
        (self.folder / "tokens").write_text(" ".join(map(str, ids)) + "\n")
        command = [os.environ["DSV2_BIN"], "logits", self.folder / "model", "--tokens-file", self.folder / "tokens"]
        subprocess.run([*command, "--output", self.folder / "logits"], check=True)
        raw = (self.folder / "logits").read_bytes()
        found = torch.tensor(struct.unpack(f"<{len(raw) // 4}f", raw)).view(len(ids), -1)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)


if __name__ == "__main__":
    unittest.main(verbosity=2)
