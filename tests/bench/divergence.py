#!/usr/bin/env python3
"""How far quantised weights and activations bring the model's answers from exact arithmetic on the same weights.

For each type, examples/model is written as a GGUF of this type and as a GGUF of the same numbers in float32. The first file's
logits come from the kernels of this machine, the second's from the C reference; both keep a float32 cache. Printed are the
Kullback-Leibler divergence, in nats (mean over all tokens, standard error), and how often the likeliest token is the same.
With --llama, llama.cpp reads the same files too, and makes the types that the package gguf cannot.
"""

import argparse
import ctypes
import json
import pathlib
import platform
import subprocess
import tempfile
from typing import Iterator

import gguf
import numpy as np

Type = gguf.GGMLQuantizationType

ROOT = pathlib.Path(__file__).resolve().parents[2]
MODEL = ROOT / "examples/model"
WINDOW = 2048  # tokens that are read at once: the model's context
BATCH = 512  # of llama.cpp
KINDS = ("F16", "BF16", "Q8_0", "Q6_K", "Q5_K", "Q5_1", "Q5_0", "Q4_K", "Q4_1", "Q4_0", "Q3_K", "Q2_K", "IQ4_NL", "IQ4_XS")
# Rows that are no multiple of 256 get a type other than the K types, the one that llama.cpp's own tool takes.
OTHERS = {Type.Q2_K: Type.Q4_0, Type.Q3_K: Type.Q4_0, Type.Q4_K: Type.Q5_0, Type.Q5_K: Type.Q5_1, Type.Q6_K: Type.Q8_0,
          Type.IQ4_XS: Type.IQ4_NL}


# ---- the files ----

class Checkpoint:
    def __init__(self) -> None:
        self.config = json.loads((MODEL / "config.json").read_text())
        data = (MODEL / "model.safetensors").read_bytes()
        length = int.from_bytes(data[:8], "little")
        self.header, self.data = json.loads(data[8 : 8 + length]), data[8 + length :]

    def __getitem__(self, name: str) -> np.ndarray:
        entry = self.header[name]
        if entry["dtype"] != "BF16":
            raise SystemExit(f"{name} is {entry['dtype']}, not BF16")
        begin, end = entry["data_offsets"]
        return (np.frombuffer(self.data[begin:end], "<u2").astype("<u4") << 16).view("<f4").reshape(entry["shape"])

    def tensors(self) -> Iterator[tuple[str, np.ndarray]]:
        """Of a GGUF, by name."""
        config = self.config
        heads, nope, value = config["num_attention_heads"], config["qk_nope_head_dim"], config["v_head_dim"]
        yield "token_embd.weight", self["model.embed_tokens.weight"]
        yield "output_norm.weight", self["model.norm.weight"]
        yield "output.weight", self["lm_head.weight"]
        for layer in range(config["num_hidden_layers"]):
            block, place = f"blk.{layer}.", f"model.layers.{layer}."
            for name, published in (
                ("attn_norm", "input_layernorm"), ("attn_q_a", "self_attn.q_a_proj"), ("attn_q_a_norm", "self_attn.q_a_layernorm"),
                ("attn_q_b", "self_attn.q_b_proj"), ("attn_kv_a_mqa", "self_attn.kv_a_proj_with_mqa"),
                ("attn_kv_a_norm", "self_attn.kv_a_layernorm"), ("attn_output", "self_attn.o_proj"),
                ("ffn_norm", "post_attention_layernorm"),
            ):
                yield f"{block}{name}.weight", self[f"{place}{published}.weight"]
            kv_b = self[place + "self_attn.kv_b_proj.weight"].reshape(heads, nope + value, -1)
            yield block + "attn_k_b.weight", kv_b[:, :nope].transpose(0, 2, 1)
            yield block + "attn_v_b.weight", kv_b[:, nope:]
            dense = layer < config["first_k_dense_replace"]
            if not dense:
                yield block + "ffn_gate_inp.weight", self[place + "mlp.gate.weight"]
            for part in ("gate", "up", "down"):
                if dense:
                    yield f"{block}ffn_{part}.weight", self[f"{place}mlp.{part}_proj.weight"]
                    continue
                yield f"{block}ffn_{part}_shexp.weight", self[f"{place}mlp.shared_experts.{part}_proj.weight"]
                experts = [self[f"{place}mlp.experts.{e}.{part}_proj.weight"] for e in range(config["n_routed_experts"])]
                yield f"{block}ffn_{part}_exps.weight", np.stack(experts)


def write_metadata(writer: gguf.GGUFWriter, config: dict, groups: bool) -> None:
    rope = config["rope_scaling"]
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_key_length(config["kv_lora_rank"] + config["qk_rope_head_dim"])
    writer.add_value_length(config["kv_lora_rank"])
    writer.add_key_length_mla(config["qk_nope_head_dim"] + config["qk_rope_head_dim"])
    writer.add_value_length_mla(config["v_head_dim"])
    writer.add_kv_lora_rank(config["kv_lora_rank"])
    writer.add_q_lora_rank(config["q_lora_rank"])
    writer.add_leading_dense_block_count(config["first_k_dense_replace"])
    writer.add_expert_count(config["n_routed_experts"])
    writer.add_expert_used_count(config["num_experts_per_tok"])
    writer.add_expert_shared_count(config["n_shared_experts"])
    writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    writer.add_expert_weights_scale(config["routed_scaling_factor"])
    writer.add_expert_weights_norm(config["norm_topk_prob"])
    if groups:
        writer.add_expert_group_count(config["n_group"])
        writer.add_expert_group_used_count(config["topk_group"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_rope_dimension_count(config["qk_rope_head_dim"])
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(rope["factor"])
    writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    writer.add_rope_scaling_yarn_log_mul(0.1 * rope["mscale_all_dim"])
    bpe = json.loads((MODEL / "tokenizer.json").read_text())["model"]
    tokens = sorted(bpe["vocab"], key=bpe["vocab"].get)
    special = [f"<special {i}>" for i in range(len(tokens), config["vocab_size"])]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("deepseek-llm")
    writer.add_token_list(tokens + special)
    writer.add_token_types([gguf.TokenType.NORMAL] * len(tokens) + [gguf.TokenType.CONTROL] * len(special))
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in bpe["merges"]])
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])


def ggml_library(llama: pathlib.Path) -> ctypes.CDLL:
    machine = {"x86_64": "x64", "aarch64": "arm64"}[platform.machine()]
    library = ctypes.CDLL(next(llama.glob(f"node_modules/@node-llama-cpp/linux-{machine}/bins/*/libggml-base.so")))
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_quantize_chunk.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int64] * 3, ctypes.c_void_p]
    return library


def quantise(data: np.ndarray, kind: Type, llama: pathlib.Path | None) -> np.ndarray:
    try:
        return gguf.quantize(data, kind)
    except NotImplementedError:
        if llama is None:
            raise SystemExit(f"the package gguf cannot make {kind.name}: give --llama") from None
    block, size = gguf.GGML_QUANT_SIZES[kind]
    columns = data.shape[-1]
    out = np.zeros((*data.shape[:-1], columns // block * size), np.uint8)
    ggml_library(llama).ggml_quantize_chunk(kind.value, data.ctypes.data, out.ctypes.data, 0, data.size // columns, columns, None)
    return out


def write_pair(folder: pathlib.Path, kind: Type, llama: pathlib.Path | None) -> tuple[pathlib.Path, pathlib.Path]:
    """The quantised file and its floats."""
    checkpoint = Checkpoint()
    paths = folder / f"{kind.name}.gguf", folder / f"{kind.name}-floats.gguf"
    writers = [gguf.GGUFWriter(path, "deepseek2") for path in paths]
    for writer in writers:
        write_metadata(writer, checkpoint.config, groups=llama is None)
    for name, data in checkpoint.tensors():
        data = np.ascontiguousarray(data, np.float32)
        if data.ndim == 1 or "ffn_gate_inp" in name:
            for writer in writers:
                writer.add_tensor(name, data)
            continue
        taken = kind if data.shape[-1] % gguf.GGML_QUANT_SIZES[kind][0] == 0 else OTHERS[kind]
        blocks = quantise(data, taken, llama)
        writers[0].add_tensor(name, blocks, raw_dtype=taken)
        writers[1].add_tensor(name, gguf.dequantize(blocks, taken).reshape(data.shape))
    for writer in writers:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return paths


# ---- logits ----

def run(*command: object, text: bytes = b"") -> bytes:
    words = [str(word) for word in command]
    done = subprocess.run(words, input=text, capture_output=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"failed: {' '.join(words)[:500]}\n{done.stderr.decode()}")
    return done.stdout


def log_softmax(path: pathlib.Path, tokens: int) -> np.ndarray:
    logits = np.fromfile(path, "<f4").reshape(tokens, -1).astype(np.float64)
    logits -= logits.max(1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(1, keepdims=True))


def ours(args: argparse.Namespace, folder: pathlib.Path, model: pathlib.Path, ids: list[int], *options: object) -> np.ndarray:
    tokens, output, windows = folder / "tokens", folder / "logits", []
    for start in range(0, len(ids), WINDOW):
        tokens.write_text(" ".join(map(str, ids[start : start + WINDOW])))
        run(args.dsv2, "logits", model, "--tokens-file", tokens, "--output", output, "--threads", args.threads, *options)
        windows.append(log_softmax(output, len(ids[start : start + WINDOW])))
    return np.concatenate(windows)


def llamas(args: argparse.Namespace, folder: pathlib.Path, model: pathlib.Path, ids: list[int]) -> np.ndarray:
    output = folder / "logits"
    settings = {"home": str(args.llama.resolve()), "model": str(model), "output": str(output), "tokens": ids, "window": WINDOW,
                "batch": BATCH, "threads": args.threads}
    run(args.node, pathlib.Path(__file__).with_name("llama_logits.mjs"), json.dumps(settings))
    return log_softmax(output, len(ids))


def compare(exact: np.ndarray, other: np.ndarray) -> str:
    divergence = (np.exp(exact) * (exact - other)).sum(1)
    error = divergence.std() / len(divergence) ** 0.5
    same = (exact.argmax(1) == other.argmax(1)).mean()
    return f"{divergence.mean():.2e} ± {error:.0e}  {same:7.2%}"


def parse_types(text: str) -> list[Type]:
    names = text.split(",")
    if not set(names) <= set(KINDS):
        raise argparse.ArgumentTypeError(f"types are {', '.join(KINDS)}")
    return [Type[name] for name in names]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", nargs="+", type=pathlib.Path, metavar="TEXT", help="text to read, plain UTF-8")
    parser.add_argument("--types", type=parse_types, default="Q8_0,Q5_1,Q5_0,Q4_1,Q4_0",
                        help="types of GGUF files; default %(default)s")
    parser.add_argument("--tokens", type=int, default=2 * WINDOW, help="tokens of each text; default %(default)s")
    parser.add_argument("--dsv2", type=pathlib.Path, default=ROOT / "build/examples/dsv2", help="the command; default %(default)s")
    parser.add_argument("--llama", type=pathlib.Path, metavar="FOLDER",
                        help="folder with node_modules/node-llama-cpp; files then have no expert groups, which llama.cpp ignores")
    parser.add_argument("--node", default="node", help="Node; default %(default)s")
    parser.add_argument("--threads", type=int, default=2, help="default %(default)s")
    args = parser.parse_args()
    texts = {}
    for text in args.texts:
        ids = [int(word) for word in run(args.dsv2, "tokenize", MODEL, text=text.read_bytes()).split()][: args.tokens]
        if len(ids) < args.tokens:
            raise SystemExit(f"{text}: {len(ids)} tokens, wanted {args.tokens}")
        texts[text] = ids
    print(f"{'type':8} {'libdsv2: KL':20} top-1    " + ("llama.cpp: KL        top-1    " if args.llama else "") + "tokens  text")
    for kind in args.types:
        with tempfile.TemporaryDirectory() as temporary:
            folder = pathlib.Path(temporary)
            quantised, floats = write_pair(folder, kind, args.llama)
            for text, ids in texts.items():
                exact = ours(args, folder, floats, ids, "--kernels", "c")
                row = f"{kind.name:8} {compare(exact, ours(args, folder, quantised, ids))}"
                if args.llama:
                    row += f"  {compare(exact, llamas(args, folder, quantised, ids))}"
                print(f"{row}  {len(ids)}  {text}", flush=True)


if __name__ == "__main__":
    main()
