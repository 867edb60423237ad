"""Everything that Pippin uses of mlx-lm: the only file that imports it.

The functions here let mlx-lm's exceptions through; their callers turn them into sentences for the user.
Importing this file imports transformers, which takes a second, so code that only needs settings imports it
inside of functions.
"""

import contextlib
import io
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm import utils
from mlx_lm.models.base import create_causal_mask
from mlx_lm.models.cache import KVCache, RotatingKVCache, make_prompt_cache
from mlx_lm.tuner.utils import linear_to_lora_layers

# ── reading ──────────────────────────────────────────────────────────────────────────────────────


def load_network(folder: Path) -> tuple[nn.Module, dict[str, Any]]:
    """Returns a checkpoint's network, with weights that are not evaluated yet, and its config."""
    return utils.load_model(folder, lazy=True)


def load_tokenizer(folder: Path) -> Any:
    """Returns mlx-lm's wrapper of a checkpoint's tokenizer.

    Its end tokens are those of generation_config.json, or else of config.json, and the tokenizer's own.
    """
    ends = utils.load_config(folder).get("eos_token_id")
    return utils.load_tokenizer(folder, eos_token_ids=ends)


def new_network(config: dict[str, Any]) -> nn.Module:
    """Returns a network of the architecture that `config` names, with mlx-lm's initial weights."""
    model_class, arguments_class = utils._get_classes(config)
    return model_class(arguments_class.from_dict(config))


# ── inside a network ─────────────────────────────────────────────────────────────────────────────


def language_model(network: nn.Module) -> Any:
    """Returns the module with a trunk (`model`) and a head: the network itself, or the text module of a
    multimodal network.
    """
    return getattr(network, "language_model", network)


def has_one_attention_cache_a_block(network: nn.Module) -> bool:
    """Returns whether every block is an attention block with one key-value cache of its own."""
    trunk = getattr(language_model(network), "model", None)
    caches = make_prompt_cache(network)
    attends = all(isinstance(cache, KVCache | RotatingKVCache) for cache in caches)
    return attends and len(getattr(trunk, "layers", ())) == len(caches)


def causal_mask(length: int, window: int | None) -> mx.array | str:
    """Returns the mask of a prompt from position 0: "causal" for fused attention, or a window's array."""
    if window is None or length <= window:
        return "causal"
    return create_causal_mask(length, window_size=window)


def add_lora(
    network: nn.Module, blocks: int, *, rank: int, scale: float, modules: list[str]
) -> None:
    """Puts low-rank adapters beside linear modules of the last `blocks` blocks.

    With an empty `modules` all linear modules get one.
    """
    config: dict[str, Any] = {"rank": rank, "scale": scale, "dropout": 0.0}
    if modules:
        config["keys"] = modules
    linear_to_lora_layers(language_model(network), blocks, config)


# ── precision ────────────────────────────────────────────────────────────────────────────────────


def quantize(network: nn.Module, config: dict[str, Any], bits: int) -> dict[str, Any]:
    """Quantises a network in place and returns its config with the quantization added."""
    with contextlib.redirect_stdout(io.StringIO()):
        group = 64 if config.get("hidden_size", 64) % 64 == 0 else 32
        return utils.quantize_model(network, config, group, bits)[1]


def dequantize(network: nn.Module) -> nn.Module:
    """Returns the network with full-precision weights."""
    return utils.dequantize_model(network)


def parameter_count(network: nn.Module) -> int:
    """Returns the number of weights without adapters; quantised weights count as before quantisation."""
    return int(utils.get_total_parameters(network))


# ── writing ──────────────────────────────────────────────────────────────────────────────────────


def save_network(network: nn.Module, config: dict[str, Any], folder: Path) -> None:
    """Writes weights and config.json in mlx-lm's layout."""
    utils.save_model(folder, network)
    utils.save_config(dict(config), folder / "config.json")
