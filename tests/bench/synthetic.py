"""A GGUF of DeepSeek-V2-Lite's shape with random quantised weights, to measure speed without the published checkpoint.

The weights' values do not matter to dense kernels. The router's weights let all experts be used. Types are those of a
common 4-bit file: Q4_K, with Q4_0 and Q8_0 where rows are no multiple of 256 and Q6_K for the head.
"""

import pathlib
from typing import Callable, Iterator, NamedTuple

import gguf
import numpy as np

Type = gguf.GGMLQuantizationType

VOCABULARY, LAYERS, HIDDEN, HEADS = 102400, 27, 2048, 16
NOPE, ROPE, VALUE, LATENT = 128, 64, 128, 512
DENSE, CHOSEN, SHARED, EXPERT = 10944, 6, 2, 1408
DEVIATION = 0.02  # of the weights, roughly


class Tensor(NamedTuple):
    name: str
    shape: tuple[int, ...]
    type: Type


def tensors(experts: int) -> Iterator[Tensor]:
    def four_bits(columns: int) -> Type:
        return Type.Q4_K if columns % 256 == 0 else Type.Q4_0

    yield Tensor("token_embd.weight", (VOCABULARY, HIDDEN), Type.Q4_K)
    yield Tensor("output_norm.weight", (HIDDEN,), Type.F32)
    yield Tensor("output.weight", (VOCABULARY, HIDDEN), Type.Q6_K)
    for layer in range(LAYERS):
        block = f"blk.{layer}."
        yield Tensor(block + "attn_norm.weight", (HIDDEN,), Type.F32)
        yield Tensor(block + "attn_q.weight", (HEADS * (NOPE + ROPE), HIDDEN), Type.Q4_K)
        yield Tensor(block + "attn_kv_a_mqa.weight", (LATENT + ROPE, HIDDEN), Type.Q4_K)
        yield Tensor(block + "attn_kv_a_norm.weight", (LATENT,), Type.F32)
        yield Tensor(block + "attn_k_b.weight", (HEADS, LATENT, NOPE), Type.Q8_0)
        yield Tensor(block + "attn_v_b.weight", (HEADS, VALUE, LATENT), Type.Q8_0)
        yield Tensor(block + "attn_output.weight", (HIDDEN, HEADS * VALUE), Type.Q4_K)
        yield Tensor(block + "ffn_norm.weight", (HIDDEN,), Type.F32)
        if layer == 0:
            yield Tensor(block + "ffn_gate.weight", (DENSE, HIDDEN), Type.Q4_K)
            yield Tensor(block + "ffn_up.weight", (DENSE, HIDDEN), Type.Q4_K)
            yield Tensor(block + "ffn_down.weight", (HIDDEN, DENSE), Type.Q8_0)
            continue
        yield Tensor(block + "ffn_gate_inp.weight", (experts, HIDDEN), Type.F32)
        yield Tensor(block + "ffn_gate_exps.weight", (experts, EXPERT, HIDDEN), Type.Q4_K)
        yield Tensor(block + "ffn_up_exps.weight", (experts, EXPERT, HIDDEN), Type.Q4_K)
        yield Tensor(block + "ffn_down_exps.weight", (experts, HIDDEN, EXPERT), four_bits(EXPERT))
        yield Tensor(block + "ffn_gate_shexp.weight", (SHARED * EXPERT, HIDDEN), Type.Q4_K)
        yield Tensor(block + "ffn_up_shexp.weight", (SHARED * EXPERT, HIDDEN), Type.Q4_K)
        yield Tensor(block + "ffn_down_shexp.weight", (HIDDEN, SHARED * EXPERT), four_bits(SHARED * EXPERT))


def scales(kind: Type) -> list[tuple[int, float]]:
    """Where a block has its float16 scales, and the values that give DEVIATION if all else in the block is random."""
    return {
        Type.Q8_0: [(0, DEVIATION / 74)],
        Type.Q4_0: [(0, DEVIATION / 4.6)],
        Type.Q4_K: [(0, DEVIATION / (32 * 4.6)), (2, DEVIATION * 7.5 / (32 * 4.6))],
        Type.Q6_K: [(208, DEVIATION / (74 * 18.5))],
    }[kind]


def stored_shape(tensor: Tensor) -> tuple[int, ...]:
    if tensor.type == Type.F32:
        return tensor.shape
    block, size = gguf.GGML_QUANT_SIZES[tensor.type]
    return (*tensor.shape[:-1], tensor.shape[-1] // block * size)


def random_data(tensor: Tensor, random: np.random.Generator) -> np.ndarray:
    if tensor.name.endswith("norm.weight"):
        return np.ones(tensor.shape, np.float32)
    if tensor.type == Type.F32:
        return random.standard_normal(tensor.shape, np.float32) * np.float32(DEVIATION)
    shape = stored_shape(tensor)
    blocks = np.frombuffer(random.bytes(int(np.prod(shape))), np.uint8).reshape(-1, gguf.GGML_QUANT_SIZES[tensor.type][1]).copy()
    for offset, scale in scales(tensor.type):
        blocks[:, offset : offset + 2] = np.array([scale], np.float16).view(np.uint8)
    return blocks.reshape(shape)


def vocabulary() -> tuple[list[str], list[str]]:
    """Tokens and merges of a byte-level BPE as large as the published one: bytes, all pairs of bytes, some triples."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = [chr(byte) for byte in printable] + [chr(256 + i) for i in range(len(others))]
    merges = [(a, b) for a in letters for b in letters]
    longer = ((a + b, c) for a, b in merges[:] for c in letters)
    while len(letters) + len(merges) < VOCABULARY - 2:
        merges.append(next(longer))
    return [*letters, *(a + b for a, b in merges)], [f"{a} {b}" for a, b in merges]


def write_gguf(path: pathlib.Path, experts: int, progress: Callable[[float], None]) -> None:
    """Writes the file, first under a temporary name. The published model has 64 experts; fewer make a smaller file.
    `progress` receives the share done."""
    temporary = path.with_suffix(".tmp")
    writer = gguf.GGUFWriter(temporary, "deepseek2", use_temp_file=False)
    writer.add_name("DeepSeek-V2-Lite's shape, random weights")
    writer.add_block_count(LAYERS)
    writer.add_context_length(163840)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(DENSE)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_key_length(LATENT + ROPE)
    writer.add_value_length(LATENT)
    writer.add_key_length_mla(NOPE + ROPE)
    writer.add_value_length_mla(VALUE)
    writer.add_kv_lora_rank(LATENT)
    writer.add_leading_dense_block_count(1)
    writer.add_expert_count(experts)
    writer.add_expert_used_count(CHOSEN)
    writer.add_expert_shared_count(SHARED)
    writer.add_expert_feed_forward_length(EXPERT)
    writer.add_expert_weights_scale(1.0)
    writer.add_expert_weights_norm(False)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(ROPE)
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(40.0)
    writer.add_rope_scaling_orig_ctx_len(4096)
    writer.add_rope_scaling_yarn_log_mul(0.0707)
    tokens, merges = vocabulary()
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("deepseek-llm")
    writer.add_token_list([*tokens, "<begin>", "<end>"])
    writer.add_token_types([gguf.TokenType.NORMAL] * len(tokens) + [gguf.TokenType.CONTROL] * 2)
    writer.add_token_merges(merges)
    writer.add_bos_token_id(VOCABULARY - 2)
    writer.add_eos_token_id(VOCABULARY - 1)
    plan = list(tensors(experts))
    sizes = [int(np.prod(stored_shape(t))) * (4 if t.type == Type.F32 else 1) for t in plan]
    for tensor, size in zip(plan, sizes):
        plain = tensor.type == Type.F32
        writer.add_tensor_info(tensor.name, stored_shape(tensor), np.dtype(np.float32 if plain else np.uint8), size,
                               raw_dtype=None if plain else tensor.type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    random = np.random.default_rng(7)
    for i, tensor in enumerate(plan):
        writer.write_tensor_data(random_data(tensor, random))
        progress(sum(sizes[: i + 1]) / sum(sizes))
    writer.close()
    temporary.rename(path)
