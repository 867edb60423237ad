"""A trained gain on the last linear map of each block (after (IA)³, Liu et al. 2022): an adapter from outside
the package, for tests.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten

from configs.fields import Closed
from policies.adapters.registry import ADAPTERS, NetworkShape
from policies.arrays import flat

MODULE = "mlp.down_proj"


class Gains(Closed, frozen=True, tag_field="name", tag="gains"):
    """Its settings, as they would stand in the schema."""

    start: float = 1.0


class Gained(nn.Module):
    def __init__(self, linear: nn.Module, width: int, start: float) -> None:
        super().__init__()
        self.linear = linear
        self.gain = mx.full((width,), start)
        self.on = True

    def __call__(self, x: mx.array) -> mx.array:
        y = self.linear(x)
        return (y * self.gain).astype(y.dtype) if self.on else y


class GainAdapter:
    adds_weights = True

    def __init__(self, settings: Gains) -> None:
        self._settings = settings

    def parameter_count(self, shape: NetworkShape) -> int:
        return shape.layers * shape.linears()[MODULE][1]

    def attach(self, network: nn.Module, seed: int) -> None:
        network.freeze()
        gained = [
            (name, Gained(module, module.weight.shape[0], self._settings.start))
            for name, module in network.named_modules()
            if name.endswith(MODULE)
        ]
        network.update_modules(tree_unflatten(gained))
        for _, module in gained:
            module.unfreeze(keys=["gain"], recurse=False)

    def remember_reference(self, network: nn.Module) -> None:
        pass

    @contextlib.contextmanager
    def reference(self, network: nn.Module) -> Iterator[None]:
        gained = [module for _, module in _gained(network)]
        for module in gained:
            module.on = False
        try:
            yield
        finally:
            for module in gained:
                module.on = True

    def export(self, network: nn.Module, base: Path, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        gains = flat(network.trainable_parameters())
        mx.save_safetensors(str(folder / "gains.safetensors"), gains)

    def fuse(self, network: nn.Module, *, dequantize: bool) -> None:
        plain = []
        for name, module in _gained(network):
            module.linear.weight = module.linear.weight * module.gain[:, None]
            plain.append((name, module.linear))
        network.update_modules(tree_unflatten(plain))


def _gained(network: nn.Module) -> list[tuple[str, Gained]]:
    return [(name, m) for name, m in network.named_modules() if isinstance(m, Gained)]


ADAPTERS.add(Gains, GainAdapter)
