"""Full training: every weight of the network, with a copy of them where a reference is needed."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import mlx.nn as nn
from mlx.utils import tree_unflatten

from configs.schema import Full
from policies.adapters.registry import ADAPTERS, NetworkShape
from policies.arrays import Arrays, flat
from runtime.errors import BadInput


class FullTraining:
    """Trains every weight."""

    adds_weights = False

    def __init__(self, settings: Full) -> None:
        self._kept: Arrays | None = None

    def parameter_count(self, shape: NetworkShape) -> int:
        """Returns the number of all weights."""
        return shape.parameters

    def attach(self, network: nn.Module, seed: int) -> None:
        """Makes every weight trainable. Raises BadInput for quantised ones."""
        if any(name.endswith(".scales") for name in flat(network.parameters())):
            raise BadInput('model.train: quantised weights cannot be trained, use name = "lora"')
        network.unfreeze()

    def remember_reference(self, network: nn.Module) -> None:
        """Keeps the present weights; they take memory once a step has replaced them."""
        self._kept = flat(network.trainable_parameters())

    @contextlib.contextmanager
    def reference(self, network: nn.Module) -> Iterator[None]:
        """Puts the kept weights into the network, and the trained ones back."""
        if self._kept is None:
            raise RuntimeError("remember_reference() was not called before training")
        now = flat(network.trainable_parameters())
        network.update(tree_unflatten(list(self._kept.items())))
        try:
            yield
        finally:
            network.update(tree_unflatten(list(now.items())))

    def export(self, network: nn.Module, base: Path, folder: Path) -> None:
        """Raises BadInput: what was trained is the whole checkpoint."""
        raise BadInput("--adapters: this run trained every weight, it has no adapters")

    def fuse(self, network: nn.Module, *, dequantize: bool) -> None:
        """Changes nothing: the weights are the network's own."""


ADAPTERS.add(Full, FullTraining)
