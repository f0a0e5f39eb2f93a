#!/usr/bin/env python3
"""Writes gguf_blocks.safetensors: for each block type of GGUF some blocks (NAME.blocks, their bytes two by two under the name of F16)
and what the gguf package makes of them (NAME.floats, F32). Needs numpy, gguf and safetensors; run once, the result is in the
repository."""
import pathlib

import gguf
import numpy as np
from safetensors.numpy import save_file

rng = np.random.default_rng(1)
out = {}
# Where a type's half floats are, so that they can be given sensible sizes: random bytes would make many of them NaN.
HALVES = {"Q8_0": [0], "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q2_K": [80, 82], "Q3_K": [108], "Q4_K": [0, 2],
          "Q5_K": [0, 2], "Q6_K": [208], "IQ4_NL": [0], "IQ4_XS": [0]}
SCALES = np.array([1.0, -0.75, 3.1e-2, 6.1e-5, 5.9e-7, 0.0, 200.0, 1.7e-3], np.float16)  # subnormals too
for name, at in HALVES.items():
    type_ = gguf.GGMLQuantizationType[name]
    elements, size = gguf.GGML_QUANT_SIZES[type_]
    n = 16 if elements == 32 else 6
    blocks = rng.integers(0, 256, (n, size), dtype=np.uint8)
    for i in range(n):
        for k, a in enumerate(at):
            blocks[i, a:a + 2] = SCALES[(i + 3 * k) % len(SCALES):][:1].view(np.uint8)
    blocks[0, max(at) + 2 if max(at) == 0 else 4:80] = 0    # all zeros and all ones: the ends of each integer's range
    blocks[1, max(at) + 2 if max(at) == 0 else 4:80] = 255
    out[name + ".blocks"] = blocks.view(np.float16)
    out[name + ".floats"] = gguf.dequantize(blocks, type_).astype(np.float32)
save_file(out, pathlib.Path(__file__).parent / "gguf_blocks.safetensors")
