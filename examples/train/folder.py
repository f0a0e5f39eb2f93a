"""A model as a Hugging Face folder, under the names and shapes of DeepSeek's checkpoints: writing and reading.

    python folder.py RUN FOLDER [average | model]

exports the weights of a training run: the running mean, or the weights of the last step. The latter are better while the
mean still reaches back beyond a change of context.
"""

import json
import pathlib
import shutil
import sys

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer

from data import BOUNDARY
from model import Config, Model

SAME = (  # fields of Config that config.json has under the same name
    "vocab_size hidden_size intermediate_size moe_intermediate_size num_hidden_layers num_attention_heads n_shared_experts "
    "n_routed_experts num_experts_per_tok routed_scaling_factor kv_lora_rank q_lora_rank qk_rope_head_dim qk_nope_head_dim "
    "v_head_dim n_group topk_group first_k_dense_replace rms_norm_eps rope_theta"
).split()
YARN = ("beta_fast", "beta_slow", "mscale", "mscale_all_dim")


def config_json(c: Config, boundary: int) -> dict:
    """The config.json that DeepSeek's modelling code reads."""
    scaling = None
    if c.rope_factor > 1:
        scaling = {"type": "yarn", "factor": c.rope_factor, "original_max_position_embeddings": c.context}
        scaling |= {name: getattr(c, name) for name in YARN}
    return {
        "architectures": ["DeepseekV2ForCausalLM"],
        "model_type": "deepseek_v2",
        **{name: getattr(c, name) for name in SAME},
        "num_key_value_heads": c.num_attention_heads,
        "topk_method": "group_limited_greedy",
        "scoring_func": "softmax",
        "norm_topk_prob": False,
        "moe_layer_freq": 1,
        "aux_loss_alpha": 0.003,
        "seq_aux": True,
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "max_position_embeddings": round(c.context * c.rope_factor),
        "rope_scaling": scaling,
        "tie_word_embeddings": False,
        "bos_token_id": boundary,
        "eos_token_id": boundary,
        "torch_dtype": "bfloat16",
        "use_cache": True,
    }


def published_names(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The state dict under DeepSeek's names: the stacked experts taken apart, `model.` before all but the head."""
    out = {}
    for name, w in weights.items():
        prefix = "" if name.startswith("lm_head") else "model."
        if name.endswith("mlp.gate_up"):
            for i, expert in enumerate(w):
                gate, up = expert.t().chunk(2, 0)
                at = f"{prefix}{name.removesuffix('gate_up')}experts.{i}."
                out |= {at + "gate_proj.weight": gate, at + "up_proj.weight": up}
        elif name.endswith("mlp.down"):
            for i, expert in enumerate(w):
                out[f"{prefix}{name.removesuffix('down')}experts.{i}.down_proj.weight"] = expert.t()
        else:
            out[prefix + name] = w
    return out


def stacked_names(c: Config, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The way back."""
    weights = {k.removeprefix("model."): v for k, v in tensors.items() if ".mlp.experts." not in k}
    for layer in range(c.first_k_dense_replace, c.num_hidden_layers):
        at = f"layers.{layer}.mlp."

        def stack(matrix: str, at: str = at) -> torch.Tensor:
            names = (f"model.{at}experts.{i}.{matrix}.weight" for i in range(c.n_routed_experts))
            return torch.stack([tensors[name].t() for name in names])

        weights[at + "gate_up"] = torch.cat((stack("gate_proj"), stack("up_proj")), -1)
        weights[at + "down"] = stack("down_proj")
    return weights


def save_folder(weights: dict, c: Config, tokenizer: pathlib.Path, boundary: int, folder: pathlib.Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config_json(c, boundary), indent=2) + "\n")
    tensors = {k: v.detach().to("cpu", torch.bfloat16).contiguous() for k, v in published_names(weights).items()}
    save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})
    shutil.copyfile(tokenizer, folder / "tokenizer.json")


def load_folder(folder: str) -> tuple[Model, dict]:
    """(the model in fp32, config.json)."""
    root = pathlib.Path(folder)
    config = json.loads((root / "config.json").read_text())
    fields = {name: config[name] for name in SAME}
    scaling = config["rope_scaling"]
    if scaling:
        fields |= {"context": scaling["original_max_position_embeddings"], "rope_factor": float(scaling["factor"])}
        fields |= {name: scaling[name] for name in YARN}
    else:
        fields["context"] = config["max_position_embeddings"]
    c = Config(**fields)
    tensors = {}
    for path in sorted(root.glob("model*.safetensors")):
        with safe_open(str(path), "pt") as f:
            tensors |= {name: f.get_tensor(name).float() for name in f.keys()}
    model = Model(c)
    model.load_state_dict(stacked_names(c, tensors))
    return model.eval(), config


def main() -> None:
    run, folder = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
    kind = sys.argv[3] if len(sys.argv) > 3 else "average"
    saved = torch.load(run if run.is_file() else run / "checkpoint.pt", map_location="cpu", weights_only=True)
    run = run.parent if run.is_file() else run
    c = Config(**saved["config"])
    boundary = Tokenizer.from_file(str(run / "tokenizer.json")).token_to_id(BOUNDARY)
    save_folder(saved[kind], c, run / "tokenizer.json", boundary, folder)
    total = sum(w.numel() for w in saved[kind].values())
    routed = sum(w.numel() for name, w in saved[kind].items() if name.endswith(("mlp.gate_up", "mlp.down")))
    activated = total - routed * (c.n_routed_experts - c.num_experts_per_tok) // c.n_routed_experts
    seen = "step {step}, {tokens} tokens seen".format(**saved["state"])
    print(f"{folder}: {seen}, {total} parameters, {activated} activated, context {c.context * c.rope_factor:.0f}")


if __name__ == "__main__":
    main()
