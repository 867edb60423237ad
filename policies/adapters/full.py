"""Full training: every weight of the network, with a copy of them where a reference is needed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from configs.model import Full
from policies.adapters.registry import ADAPTERS, NetworkShape
from runtime.errors import BadInput

if TYPE_CHECKING:
    import mlx.nn as nn

    from policies.arrays import Arrays


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
        from policies.arrays import flat

        if any(name.endswith(".scales") for name in flat(network.parameters())):
            raise BadInput('model.train: quantised weights cannot be trained, use name = "lora"')
        network.unfreeze()

    def remember_reference(self, network: nn.Module) -> None:
        """Keeps the present weights; they need memory of their own once a step has replaced them."""
        from policies.arrays import flat

        self._kept = flat(network.trainable_parameters())

    @contextlib.contextmanager
    def reference(self, network: nn.Module) -> Iterator[None]:
        """Puts the kept weights into the network for a `with` block, and the trained ones back after it."""
        from policies.arrays import flat, unflat

        if self._kept is None:
            raise RuntimeError("remember_reference() was not called before training")
        now = flat(network.trainable_parameters())
        network.update(unflat(self._kept))
        try:
            yield
        finally:
            network.update(unflat(now))

    def export(self, network: nn.Module, base: Path, folder: Path) -> None:
        """Raises BadInput, because this kind trains the whole checkpoint and has no adapters."""
        raise BadInput("--adapters: this run trained every weight, it has no adapters")

    def fuse(self, network: nn.Module, *, dequantize: bool) -> None:
        """Changes nothing: the weights are the network's own."""


ADAPTERS.add(Full, FullTraining)
