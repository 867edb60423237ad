"""Writes a random network as a checkpoint, for the seedling, benchmarks and tests."""

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten

from policies.arrays import flat
from policies.mlx_lm_port import new_network
from runtime.keys import derive

DEVIATION = 0.02
"""Standard deviation of a matrix's elements, as in GPT-2."""


def create_checkpoint(folder: Path, config: dict[str, Any], seed: int) -> None:
    """Writes a random network of any mlx-lm architecture, in the Hugging Face layout (no tokenizer).

    Matrices are normally distributed, from explicit keys; norms stay as mlx-lm creates them. With an entry
    "quantization" {group_size, bits} in `config` the network is quantised.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model = new_network(config)
    drawn = []
    for name, array in flat(model.parameters()).items():
        if array.ndim > 1:
            key = mx.array([derive(seed, name, half) & 0xFFFFFFFF for half in (0, 1)], mx.uint32)
            drawn.append((name, DEVIATION * mx.random.normal(array.shape, key=key)))
    model.update(tree_unflatten(drawn))
    if quantization := config.get("quantization"):
        nn.quantize(model, quantization["group_size"], quantization["bits"])
    if config.get("tie_word_embeddings") and "lm_head" in model:
        model.pop("lm_head")
    weights = flat(model.parameters())
    mx.save_safetensors(str(folder / "model.safetensors"), weights, {"format": "mlx"})
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True))
