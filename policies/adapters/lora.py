"""LoRA (Hu et al. 2021): low-rank adapters beside frozen weights; on a quantised base this is QLoRA.

The reference policy is the same network with the adapters off, so no weights are kept for it.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.model import Lora
from policies.adapters.registry import ADAPTERS, NetworkShape
from runtime.errors import BadInput

if TYPE_CHECKING:
    import mlx.core as mx
    import mlx.nn as nn


class LoraAdapter:
    """Trains two factors beside each chosen linear module."""

    adds_weights = True

    def __init__(self, settings: Lora) -> None:
        self._settings = settings
        self._blocks = 0
        """Number of the last blocks that have adapters; set by `attach`."""

    def parameter_count(self, shape: NetworkShape) -> int:
        """Returns rank × (inputs + outputs) of each chosen module, over the chosen blocks."""
        linears = shape.linears()
        modules = self._settings.modules or list(linears)
        sides = sum(self._settings.rank * sum(linears[m]) for m in modules if m in linears)
        return self._chosen(shape.layers) * sides

    def attach(self, network: nn.Module, seed: int) -> None:
        """Freezes the network and adds adapters, drawn from `seed` and the module's name.

        The network's outputs stay the same until the first step.

        Raises BadInput if none of the modules is in the network's blocks.
        """
        from policies.mlx_lm_port import add_lora, language_model

        wanted = self._settings
        network.freeze()
        self._blocks = self._chosen(len(language_model(network).model.layers))
        if self._blocks:
            add_lora(
                network, self._blocks, rank=wanted.rank, scale=wanted.scale, modules=wanted.modules
            )
        adapters = [(n, m) for n, m in network.named_modules() if hasattr(m, "lora_a")]
        if not adapters:
            raise BadInput(
                f"model.train.modules: none of {wanted.modules} is in this model's blocks"
            )
        for name, module in sorted(adapters):
            module.lora_a = _drawn(module.lora_a.shape, seed, name)
            module.unfreeze(keys=["lora_a", "lora_b"], recurse=False)

    def remember_reference(self, network: nn.Module) -> None:
        """Keeps nothing: the frozen weights are the reference."""

    @contextlib.contextmanager
    def reference(self, network: nn.Module) -> Iterator[None]:
        """Turns the adapters off for a `with` block."""
        layers = [m for _, m in network.named_modules() if hasattr(m, "lora_b")]
        scales = [layer.scale for layer in layers]
        for layer in layers:
            layer.scale = 0.0
        try:
            yield
        finally:
            for layer, scale in zip(layers, scales):
                layer.scale = scale

    def export(self, network: nn.Module, base: Path, folder: Path) -> None:
        """Writes the adapters in the format of ``mlx_lm.generate --adapter-path``."""
        import mlx.core as mx

        from policies.arrays import flat

        wanted = self._settings
        parameters: dict[str, Any] = {"rank": wanted.rank, "scale": wanted.scale, "dropout": 0.0}
        if wanted.modules:
            parameters["keys"] = wanted.modules
        config = {
            "fine_tune_type": "lora",
            "num_layers": self._blocks,
            "lora_parameters": parameters,
            "model": str(base),
        }
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True))
        trained = flat(network.trainable_parameters())
        mx.save_safetensors(str(folder / "adapters.safetensors"), trained, {"format": "mlx"})

    def fuse(self, network: nn.Module, *, dequantize: bool) -> None:
        """Adds each product of factors to its base weight, which rounds the sum if the base has 4 bits."""
        from mlx.utils import tree_unflatten

        fused = [
            (name, module.fuse(dequantize=dequantize))
            for name, module in network.named_modules()
            if hasattr(module, "fuse") and hasattr(module, "lora_a")
        ]
        if fused:
            network.update_modules(tree_unflatten(fused))

    def _chosen(self, blocks: int) -> int:
        return blocks if self._settings.layers < 0 else min(self._settings.layers, blocks)


def _drawn(shape: tuple[int, ...], seed: int, name: str) -> mx.array:
    import mlx.core as mx

    from runtime.keys import derive

    bound = 1 / math.sqrt(shape[0])
    key = mx.array([derive(seed, "lora", name, half) & 0xFFFFFFFF for half in (0, 1)], mx.uint32)
    return mx.random.uniform(-bound, bound, shape, key=key)


ADAPTERS.add(Lora, LoraAdapter)
