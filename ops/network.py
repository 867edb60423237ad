"""The shape of a transformer, from a checkpoint's headers, or guessed from its name before it is here."""

import math
import re
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from configs.load import NOT_FOLDERS
from runtime.checkpoint_files import CheckpointFiles

QUANTIZATION_GROUP = 64
"""Weights that share a scale and a bias of 16 bits each."""


class Network(Struct, frozen=True, kw_only=True):
    """Holds the shape of a dense decoder-only transformer."""

    parameters: int
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    weight_bytes: int
    """The bytes of all weights as they are stored."""
    item_bytes: int
    """The bytes of one activation."""

    def linears(self) -> dict[str, tuple[int, int]]:
        """Returns the inputs and outputs of the linear modules of a block."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return {
            "self_attn.q_proj": (self.hidden, queries),
            "self_attn.k_proj": (self.hidden, keys),
            "self_attn.v_proj": (self.hidden, keys),
            "self_attn.o_proj": (queries, self.hidden),
            "mlp.gate_proj": (self.hidden, self.intermediate),
            "mlp.up_proj": (self.hidden, self.intermediate),
            "mlp.down_proj": (self.intermediate, self.hidden),
        }


def network_of(files: CheckpointFiles) -> Network | None:
    """Returns the network of a checkpoint folder; None where its config lacks what the estimate needs."""
    config = files.text_config
    try:
        hidden, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
        shape = {
            "layers": int(config["num_hidden_layers"]),
            "hidden": hidden,
            "intermediate": int(config.get("intermediate_size") or 4 * hidden),
            "heads": heads,
            "kv_heads": int(config.get("num_key_value_heads") or heads),
            "head_dim": int(config.get("head_dim") or hidden // heads),
            "vocabulary": int(config["vocab_size"]),
        }
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None
    sizes = [t.size_bytes // max(math.prod(t.shape), 1) for t in files.tensors.values()]
    packed = _packing(config)
    parameters = sum(
        math.prod(t.shape) * (packed if t.dtype == "U32" else 1) for t in files.tensors.values()
    )
    return Network(
        **shape,
        parameters=parameters,
        weight_bytes=files.weights_bytes,
        item_bytes=2 if files.quantized or max(sizes) <= 2 else 4,
    )


def _packing(config: dict[str, Any]) -> int:
    """Returns the number of quantised weights in one 32-bit word."""
    quantization = config.get("quantization") or config.get("quantization_config") or {}
    bits = quantization.get("bits", 32) if isinstance(quantization, dict) else 32
    return 32 // bits if isinstance(bits, int) and 0 < bits <= 32 else 1


def _qwen3(billions: float, *shape: int) -> Network:
    hidden, intermediate, layers, heads = shape
    parameters = round(billions * 1e9)
    return Network(
        parameters=parameters,
        layers=layers,
        hidden=hidden,
        intermediate=intermediate,
        heads=heads,
        kv_heads=8,
        head_dim=128,
        vocabulary=151_936,
        weight_bytes=2 * parameters,
        item_bytes=2,
    )


QWEN3 = {
    0.6: _qwen3(0.596, 1024, 3072, 28, 16),
    1.7: _qwen3(1.72, 2048, 6144, 28, 16),
    4.0: _qwen3(4.02, 2560, 9728, 36, 32),
    8.0: _qwen3(8.19, 4096, 12288, 36, 32),
    14.0: _qwen3(14.8, 5120, 17408, 40, 40),
    32.0: _qwen3(32.8, 5120, 25600, 64, 64),
}
"""Shapes that stand in for a checkpoint that is not here, by billions of parameters."""

SEEDLING = Network(
    parameters=1_000_000,
    layers=4,
    hidden=128,
    intermediate=512,
    heads=4,
    kv_heads=2,
    head_dim=32,
    vocabulary=512,
    weight_bytes=4_000_000,
    item_bytes=4,
)
"""A network that stands in for Pippin's own checkpoint before it is made: its order of magnitude."""

SIZE_IN_NAME = re.compile(r"(?<![\d.])(\d+(?:\.\d+)?)\s*([bm])(?![a-z])", re.IGNORECASE)
BITS_IN_NAME = re.compile(r"(?<!\d)([48])-?bit", re.IGNORECASE)


def assumed_network(name: str) -> tuple[Network, str] | None:
    """Returns a stand-in for a checkpoint of this name, and the assumption in words; None without a size.

    "mlx-community/Llama-3.2-1B-4bit" → the nearest Qwen3 shape, scaled, in 4 bits.
    """
    if name in NOT_FOLDERS:
        return SEEDLING, f"the {name} is not made yet: about 1 million parameters are assumed"
    found = SIZE_IN_NAME.search(name.rpartition("/")[2])
    if found is None:
        return None
    billions = float(found[1]) / (1 if found[2].lower() == "b" else 1000)
    if not billions:
        return None
    nearest = min(QWEN3, key=lambda size: max(size / billions, billions / size))
    network = QWEN3[nearest]
    parameters = network.parameters if nearest == billions else round(billions * 1e9)
    bits = BITS_IN_NAME.search(name)
    item = int(bits[1]) / 8 + 4 / QUANTIZATION_GROUP if bits else 2
    stand_in = replace(network, parameters=parameters, weight_bytes=round(parameters * item))
    stored = f"{bits[1]} bits" if bits else "16 bits"
    return stand_in, (
        f"{name} is not on this machine yet: by its name, {parameters / 1e9:.2g} billion "
        f"parameters in {stored} in the shape of Qwen3-{nearest:g}B are assumed"
    )
