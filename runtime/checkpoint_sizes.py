"""Checks that a checkpoint's config.json and its tensors describe the same network.

The check uses the headers, before a network is built: a config with a billion layers would otherwise build
them. `policies.load.check_loads` builds the network and checks what only the architecture's code knows.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from runtime.errors import BadInput
from runtime.safetensors_header import Tensor

LARGEST_SIZE = 1 << 24
"""Largest allowed size; the largest vocabularies have 2¹⁸ entries, the widest layers fewer."""
MOST_LAYERS = 1_000
"""Largest allowed number of layers; the deepest networks have about 130."""
SIZES = re.compile(r"num_\w+|n_(?:layer|head|embd)s?|\w+_(?:size|dim|rank)")
COUNTED = ("hidden_size", "num_hidden_layers", "num_attention_heads")
"""Sizes that may not be null if config.json has them."""
LAYER = re.compile(r"(?:language_model\.)?(?:model\.)?(?:language_model\.)?layers\.(\d+)\.")
EMBEDDINGS = (
    "model.embed_tokens.weight",
    "model.language_model.embed_tokens.weight",
    "language_model.model.embed_tokens.weight",
)
PLAIN = frozenset({"gemma", "gemma2", "gemma3_text", "llama", "mistral", "qwen2", "qwen3"})
"""Architectures whose projections have the usual shapes, so that these can be checked."""
FLOATS = frozenset({"F32", "F16", "BF16"})


def check_sizes(
    path: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor], quantized: bool
) -> None:
    """Raises BadInput for the first size of config.json (`path`) that the tensors contradict.

    `config` is the language model's part.
    """
    for key, value in config.items():
        if SIZES.fullmatch(key):
            _check_number(path, key, value)
    context = config.get("max_position_embeddings")
    if context is not None and (type(context) is not int or context < 1):
        raise BadInput(f"{path}: max_position_embeddings needs an integer ≥ 1, got {context!r:.80}")
    _check_layers(path, config, tensors)
    for name, shape, meaning in _expected(config, tensors, quantized):
        found = tensors[name].shape
        if any(want is not None and want != got for want, got in zip(shape, found, strict=False)):
            needed = "×".join("…" if n is None else str(n) for n in shape)
            raise BadInput(
                f"{path}: {meaning} makes {name} {needed}, but the weights file has "
                f"{'×'.join(map(str, found))}: they do not belong together"
            )
    if not quantized:
        for name, tensor in tensors.items():
            if name.endswith((".weight", ".bias")) and tensor.dtype not in FLOATS:
                raise BadInput(
                    f"{path.parent}: {name} is stored as {tensor.dtype}, needs F32, F16 or BF16 "
                    "if config.json names no quantization"
                )


def _check_number(path: Path, key: str, value: Any) -> None:
    if isinstance(value, list | dict | str | bool) or (value is None and key not in COUNTED):
        if key in COUNTED:
            raise BadInput(f"{path}: {key} needs an integer ≥ 1, got {type(value).__name__}")
        return  # some architectures have one for each layer
    least = 1 if key in COUNTED else 0
    whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    if (
        value is None
        or (key in COUNTED and not isinstance(value, int))
        or (whole and value < least)
    ):
        raise BadInput(f"{path}: {key} needs an integer ≥ {least}, got {value}")
    if value > LARGEST_SIZE:
        raise BadInput(f"{path}: {key} needs at most {LARGEST_SIZE:,}, got {value:.6g}")


def _check_layers(path: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    layers = config.get("num_hidden_layers")
    if not isinstance(layers, int):
        return
    found = {
        int(match[1]) for name in tensors if (match := LAYER.match(name)) and len(match[1]) < 9
    }
    if found and layers > len(found):
        raise BadInput(
            f"{path}: num_hidden_layers is {layers}, but the weights have {len(found)} layers"
        )
    if layers > MOST_LAYERS:
        raise BadInput(f"{path}: num_hidden_layers needs at most {MOST_LAYERS:,}, got {layers:,}")


def _expected(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], quantized: bool
) -> Iterator[tuple[str, tuple[int | None, ...], str]]:
    """Yields tensors' names with their shapes by the config, and the keys that determine these."""
    size = {key: n for key, n in config.items() if type(n) is int}
    vocabulary, hidden = size.get("vocab_size"), size.get("hidden_size")
    width = None if quantized else hidden  # packed
    for name in EMBEDDINGS:
        if name in tensors:
            yield name, (vocabulary, width), "vocab_size × hidden_size"
    if config.get("model_type") not in PLAIN or hidden is None:
        return
    heads = size.get("num_attention_heads")
    kv_heads = size.get("num_key_value_heads", heads)
    each = size.get("head_dim", hidden // heads if heads else None)
    query = heads * each if heads and each else None
    keys = kv_heads * each if kv_heads and each else None
    inner = size.get("intermediate_size")
    shapes = {
        "self_attn.q_proj": ((query, width), "num_attention_heads × head_dim"),
        "self_attn.k_proj": ((keys, width), "num_key_value_heads × head_dim"),
        "self_attn.v_proj": ((keys, width), "num_key_value_heads × head_dim"),
        "self_attn.o_proj": ((hidden, None if quantized else query), "hidden_size"),
        "mlp.gate_proj": ((inner, width), "intermediate_size × hidden_size"),
        "mlp.up_proj": ((inner, width), "intermediate_size × hidden_size"),
        "mlp.down_proj": (
            (hidden, None if quantized else inner),
            "hidden_size × intermediate_size",
        ),
    }
    for name in tensors:
        if (match := LAYER.match(name)) and name.endswith(".weight"):
            module = name[match.end() :].removesuffix(".weight")
            if module in shapes:
                yield name, *shapes[module]
