"""A DeepSeek-V2 in PyTorch, for training.

Names and equation numbers are those of the DeepSeek-V2 report (arXiv 2405.04434). The modules are laid out so that
`folder.py` can write the parameters under the names of DeepSeek's published checkpoints. Only the routed experts differ:
the experts of a layer are stacked in one tensor here, so that one grouped product serves all of them.
"""

import dataclasses
import math

import torch
import torch.nn.functional as F
from torch import nn

BLOCK = 32  # rows; see MoE.places
SHORT = 512  # up to this length plain products are faster on a CPU than its fused attention


@dataclasses.dataclass
class Config:
    """The shape of the model, as in DeepSeek's config.json. `context` and `rope_factor` give its rope_scaling."""

    vocab_size: int = 4096
    hidden_size: int = 256
    intermediate_size: int = 512
    moe_intermediate_size: int = 128
    num_hidden_layers: int = 5
    num_attention_heads: int = 4
    n_shared_experts: int = 2
    n_routed_experts: int = 16
    num_experts_per_tok: int = 2
    routed_scaling_factor: float = 4.0
    kv_lora_rank: int = 64
    q_lora_rank: int = 96
    qk_rope_head_dim: int = 16
    qk_nope_head_dim: int = 32
    v_head_dim: int = 48
    n_group: int = 4
    topk_group: int = 2
    first_k_dense_replace: int = 1
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    context: int = 512  # what the model is first trained at: YaRN's original context
    rope_factor: float = 1.0  # s of the YaRN extension; 1 is plain RoPE
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float = 0.707
    mscale_all_dim: float = 0.707
    init_std: float = 0.02


def yarn_mscale(factor: float, mscale: float) -> float:
    """m(s, a) = 0.1 a ln s + 1: by how much attention is sharpened when the context grows s times (section 3.1.4)."""
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def rope_tables(config: Config, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin of every (position, pair), with YaRN's blend of frequencies and its first correction."""
    dim = config.qk_rope_head_dim
    exponent = torch.arange(0, dim, 2, dtype=torch.float32) / dim
    frequency = 1.0 / config.rope_theta**exponent
    if config.rope_factor > 1:

        def pair_that_turns(turns: float) -> float:
            """The (fractional) pair that makes this many turns within the original context."""
            return dim * math.log(config.context / (turns * 2 * math.pi)) / (2 * math.log(config.rope_theta))

        low = max(math.floor(pair_that_turns(config.beta_fast)), 0)
        high = min(math.ceil(pair_that_turns(config.beta_slow)), dim - 1)
        # Pairs below `low` turn often enough to keep their frequency; pairs above `high` are slowed s times.
        ramp = (torch.arange(dim // 2, dtype=torch.float32) - low) / max(high - low, 0.001)
        keep = 1.0 - ramp.clamp(0, 1)
        frequency = frequency / config.rope_factor * (1 - keep) + frequency * keep
    angle = torch.outer(torch.arange(length, dtype=torch.float32), frequency)
    correction = yarn_mscale(config.rope_factor, config.mscale) / yarn_mscale(config.rope_factor, config.mscale_all_dim)
    return angle.cos() * correction, angle.sin() * correction


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """RoPE on interleaved pairs (2i, 2i+1) of the last dimension; x is [batch, T, heads, dim]."""
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = cos[:, None, :], sin[:, None, :]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2).to(x.dtype)


class RMSNorm(nn.Module):
    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x):
        y = x.float()
        y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + self.eps)
        return (y * self.weight).to(x.dtype)


def linear(inputs: int, outputs: int) -> nn.Linear:
    return nn.Linear(inputs, outputs, bias=False)


class Attention(nn.Module):
    """Multi-head latent attention, section 2.1 (Eqs. 9-19), in its expanded form."""

    def __init__(self, c: Config):
        super().__init__()
        self.c = c
        heads, nope, rope = c.num_attention_heads, c.qk_nope_head_dim, c.qk_rope_head_dim
        self.q_a_proj = linear(c.hidden_size, c.q_lora_rank)
        self.q_a_layernorm = RMSNorm(c.q_lora_rank, c.rms_norm_eps)
        self.q_b_proj = linear(c.q_lora_rank, heads * (nope + rope))
        self.kv_a_proj_with_mqa = linear(c.hidden_size, c.kv_lora_rank + rope)
        self.kv_a_layernorm = RMSNorm(c.kv_lora_rank, c.rms_norm_eps)
        self.kv_b_proj = linear(c.kv_lora_rank, heads * (nope + c.v_head_dim))
        self.o_proj = linear(heads * c.v_head_dim, c.hidden_size)

    def forward(self, h, cos, sin):
        c = self.c
        batch, length, _ = h.shape
        heads, nope, rope = c.num_attention_heads, c.qk_nope_head_dim, c.qk_rope_head_dim
        # Eqs. 12-15: queries through their own latent c^Q, then the part that RoPE turns.
        q = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(h))).view(batch, length, heads, nope + rope)
        q_nope, q_rope = q.split((nope, rope), -1)
        # Eqs. 9-11 and 16: the latent c^KV that a server would cache, and one rotated key for all heads.
        latent, k_rope = self.kv_a_proj_with_mqa(h).split((c.kv_lora_rank, rope), -1)
        kv = self.kv_b_proj(self.kv_a_layernorm(latent)).view(batch, length, heads, nope + c.v_head_dim)
        k_nope, value = kv.split((nope, c.v_head_dim), -1)
        q = torch.cat((q_nope, rotate(q_rope, cos, sin)), -1)
        k_rope = rotate(k_rope.unsqueeze(2), cos, sin).expand(-1, -1, heads, -1)
        key = torch.cat((k_nope, k_rope), -1)
        # Eqs. 17-18; YaRN's second correction sharpens the softmax.
        scale = (nope + rope) ** -0.5 * yarn_mscale(c.rope_factor, c.mscale_all_dim) ** 2
        q, key, value = (x.transpose(1, 2) for x in (q, key, value))
        if length <= SHORT and h.device.type == "cpu":
            mask = torch.ones(length, length, dtype=torch.bool).triu(1)
            weights = ((q @ key.transpose(-1, -2)).float() * scale).masked_fill(mask, float("-inf")).softmax(-1)
            out = weights.to(value.dtype) @ value
        else:
            out = F.scaled_dot_product_attention(q, key, value, is_causal=True, scale=scale)
        return self.o_proj(out.transpose(1, 2).reshape(batch, length, -1))  # Eq. 19


class MLP(nn.Module):
    """SwiGLU."""

    def __init__(self, hidden: int, inner: int):
        super().__init__()
        self.gate_proj = linear(hidden, inner)
        self.up_proj = linear(hidden, inner)
        self.down_proj = linear(inner, hidden)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Gather(torch.autograd.Function):
    """x[index] with one zero row after x's last, for an index under which each row of x goes to `back.shape[1]` places.

    `back` says which: the gradient is then a gather and a sum, where autograd would scatter with atomic additions.
    """

    @staticmethod
    def forward(ctx, x, index, back):
        ctx.save_for_backward(back)
        return torch.cat((x, x.new_zeros(1, x.shape[1])))[index]

    @staticmethod
    def backward(ctx, grad):
        (back,) = ctx.saved_tensors
        grad = torch.cat((grad, grad.new_zeros(1, grad.shape[1])))
        return grad[back].sum(1), None, None


class Gate(nn.Module):
    """The router: only its weight, kept in fp32 arithmetic whatever the rest runs in."""

    def __init__(self, c: Config):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(c.n_routed_experts, c.hidden_size))


def route(scores: torch.Tensor, c: Config) -> tuple[torch.Tensor, torch.Tensor]:
    """Device-limited routing, section 2.2.2: top-k inside the topk_group groups with the best experts."""
    groups = scores.unflatten(-1, (c.n_group, -1))
    kept = groups.amax(-1).topk(c.topk_group, -1).indices
    mask = torch.zeros(groups.shape[:-1], dtype=torch.bool, device=scores.device).scatter(-1, kept, True)
    allowed = groups.masked_fill(~mask.unsqueeze(-1), 0.0).flatten(-2)
    return allowed.topk(c.num_experts_per_tok, -1)


def balance_losses(scores: torch.Tensor, ids: torch.Tensor, c: Config) -> torch.Tensor:
    """Eqs. 23-31 with alpha = 1: [expert, device, communication], for scores [batch, T, N_r] and ids [batch, T, K_r].

    T is the length of a sequence, as in the report; the losses of the batch's sequences are averaged.
    """
    experts, groups, chosen = c.n_routed_experts, c.n_group, c.num_experts_per_tok
    batch, length, _ = scores.shape
    selected = torch.zeros_like(scores).scatter(-1, ids, 1.0)
    f = selected.sum(1) * experts / (chosen * length)  # Eq. 24
    p = scores.mean(1)  # Eq. 25
    expert = (f * p).sum(-1)  # Eq. 23
    f_device = f.unflatten(-1, (groups, -1)).mean(-1)  # Eq. 27
    p_device = p.unflatten(-1, (groups, -1)).sum(-1)  # Eq. 28
    device = (f_device * p_device).sum(-1)  # Eq. 26
    sent = selected.unflatten(-1, (groups, -1)).amax(-1)
    f_sent = sent.sum(1) * groups / (c.topk_group * length)  # Eq. 30
    communication = (f_sent * p_device).sum(-1)  # Eqs. 29 and 31
    return torch.stack((expert.mean(), device.mean(), communication.mean()))


class MoE(nn.Module):
    """DeepSeekMoE, section 2.2 (Eqs. 20-22): shared experts and the chosen routed ones."""

    def __init__(self, c: Config):
        super().__init__()
        self.c = c
        inner = c.moe_intermediate_size
        self.gate = Gate(c)
        self.shared_experts = MLP(c.hidden_size, c.n_shared_experts * inner)
        # Stacked over experts; columns 0..inner of gate_up are gate_proj, the rest up_proj.
        self.gate_up = nn.Parameter(torch.empty(c.n_routed_experts, c.hidden_size, 2 * inner))
        self.down = nn.Parameter(torch.empty(c.n_routed_experts, inner, c.hidden_size))

    def places(self, ids):
        """Rows for the experts: (token, choice) pairs sorted by expert, each expert's stretch padded to whole blocks.

        oneDNN compiles a kernel for every new size of a matrix. With stretches of any length, compiling would take longer
        than the products. Returns: `rows` [R], the token of each row (or one past the last, for a row of
        zeros); `ends` [N_r], where each expert's stretch ends; `source` [R, 1], the pair of each row; `slot`
        [tokens, K_r], the row of each pair; and `load` [N_r], pairs per expert.
        """
        experts, chosen, device = self.c.n_routed_experts, self.c.num_experts_per_tok, ids.device
        flat = ids.flatten()
        pairs = flat.numel()
        total = pairs + experts * BLOCK
        load = torch.zeros(experts, dtype=torch.long, device=device).scatter_add(0, flat, torch.ones_like(flat))
        ends = ((load + BLOCK - 1) // BLOCK * BLOCK).cumsum(0)
        starts = F.pad(ends[:-1], (1, 0))
        order = flat.argsort(stable=True)
        expert = flat[order]
        first = load.cumsum(0) - load
        place = starts[expert] + torch.arange(pairs, device=device) - first[expert]
        slot = torch.empty_like(flat).scatter(0, order, place).view(-1, chosen)
        source = torch.full((total,), pairs, device=device).scatter(0, place, order)
        ends = torch.cat((ends[:-1], ends.new_full((1,), total))).to(torch.int32)
        return source // chosen, ends, source.unsqueeze(1), slot, load

    def forward(self, x):
        c = self.c
        with torch.autocast(x.device.type, enabled=False):
            scores = F.linear(x.float(), self.gate.weight).softmax(-1)  # Eq. 22
        gates, ids = route(scores, c)
        rows, ends, source, slot, load = self.places(ids)
        kind = torch.bfloat16 if torch.is_autocast_enabled(x.device.type) else x.dtype
        x_rows = Gather.apply(x.flatten(0, 1), rows, slot)
        gate, up = F.grouped_mm(x_rows.to(kind), self.gate_up.to(kind), offs=ends).chunk(2, -1)
        y_rows = F.grouped_mm(F.silu(gate) * up, self.down.to(kind), offs=ends)
        y = Gather.apply(y_rows, slot.flatten(), source).view(*ids.shape, -1)
        routed = (y * (gates * c.routed_scaling_factor).unsqueeze(-1).to(y.dtype)).sum(2)
        out = self.shared_experts(x) + routed.to(x.dtype)  # Eq. 20
        return out, balance_losses(scores, ids, c), load


class Layer(nn.Module):
    def __init__(self, c: Config, index: int):
        super().__init__()
        self.input_layernorm = RMSNorm(c.hidden_size, c.rms_norm_eps)
        self.self_attn = Attention(c)
        self.post_attention_layernorm = RMSNorm(c.hidden_size, c.rms_norm_eps)
        dense = index < c.first_k_dense_replace
        self.mlp = MLP(c.hidden_size, c.intermediate_size) if dense else MoE(c)


class Model(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        self.config = c
        self.embed_tokens = nn.Embedding(c.vocab_size, c.hidden_size)
        self.layers = nn.ModuleList(Layer(c, i) for i in range(c.num_hidden_layers))
        self.norm = RMSNorm(c.hidden_size, c.rms_norm_eps)
        self.lm_head = linear(c.hidden_size, c.vocab_size)
        for p in self.parameters():
            if p.dim() > 1:  # matrices; the norms' weights stay 1
                nn.init.normal_(p, std=c.init_std)

    def forward(self, tokens, cos, sin):
        """Logits [batch, T, vocab], balance losses [MoE layers, 3] and loads [MoE layers, N_r]."""
        h = self.embed_tokens(tokens)
        balance, loads = [], []
        for layer in self.layers:
            h = h + layer.self_attn(layer.input_layernorm(h), cos, sin)
            x = layer.post_attention_layernorm(h)
            if isinstance(layer.mlp, MoE):
                x, losses, load = layer.mlp(x)
                balance.append(losses)
                loads.append(load)
            else:
                x = layer.mlp(x)
            h = h + x
        return self.lm_head(self.norm(h)), torch.stack(balance), torch.stack(loads)
