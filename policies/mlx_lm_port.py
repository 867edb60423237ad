"""Everything that Pippin takes from mlx-lm: the only file that imports it.

Its functions say nothing to a person: their callers turn what mlx-lm raises into a sentence.
Importing it brings transformers and takes a second, so what only needs settings imports it late.
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
    """Returns a checkpoint's network, its weights not evaluated yet, and its config."""
    return utils.load_model(folder, lazy=True)


def load_tokenizer(folder: Path) -> Any:
    """Returns mlx-lm's wrapper of a checkpoint's tokenizer.

    It stops at each end token of generation_config.json, or else of config.json, and at its own.
    """
    ends = utils.load_config(folder).get("eos_token_id")
    return utils.load_tokenizer(folder, eos_token_ids=ends)


def new_network(config: dict[str, Any]) -> nn.Module:
    """Returns a network of the architecture that `config` names, its weights as mlx-lm creates them."""
    model_class, arguments_class = utils._get_classes(config)
    return model_class(arguments_class.from_dict(config))


# ── the parts of a network ───────────────────────────────────────────────────────────────────────


def language_model(network: nn.Module) -> Any:
    """Returns the part with a trunk (`model`) and a head: the network itself, or a part of one for
    several kinds of input.
    """
    return getattr(network, "language_model", network)


def has_one_attention_cache_a_block(network: nn.Module) -> bool:
    """Returns whether every block attends, with one key-value cache of its own."""
    trunk = getattr(language_model(network), "model", None)
    caches = make_prompt_cache(network)
    attends = all(isinstance(cache, KVCache | RotatingKVCache) for cache in caches)
    return attends and len(getattr(trunk, "layers", ())) == len(caches)


def causal_mask(length: int, window: int | None) -> mx.array | str:
    """Returns the mask of a prompt from position 0: the word that fused attention takes, or a window's."""
    if window is None or length <= window:
        return "causal"
    return create_causal_mask(length, window_size=window)


def add_lora(
    network: nn.Module, blocks: int, *, rank: int, scale: float, modules: list[str]
) -> None:
    """Puts low-rank adapters beside linear modules of the last `blocks` blocks (no modules: all)."""
    config: dict[str, Any] = {"rank": rank, "scale": scale, "dropout": 0.0}
    if modules:
        config["keys"] = modules
    linear_to_lora_layers(language_model(network), blocks, config)


# ── precision ────────────────────────────────────────────────────────────────────────────────────


def quantize(network: nn.Module, config: dict[str, Any], bits: int) -> dict[str, Any]:
    """Quantises a network in place and returns the config that says so."""
    with contextlib.redirect_stdout(io.StringIO()):
        group = 64 if config.get("hidden_size", 64) % 64 == 0 else 32
        return utils.quantize_model(network, config, group, bits)[1]


def dequantize(network: nn.Module) -> nn.Module:
    """Returns the network with full-precision weights."""
    return utils.dequantize_model(network)


def parameter_count(network: nn.Module) -> int:
    """Returns the number of weights, quantised ones counted as what they stand for; no adapters."""
    return int(utils.get_total_parameters(network))


# ── writing ──────────────────────────────────────────────────────────────────────────────────────


def save_network(network: nn.Module, config: dict[str, Any], folder: Path) -> None:
    """Writes weights and config.json as mlx-lm lays them out."""
    utils.save_model(folder, network)
    utils.save_config(dict(config), folder / "config.json")
