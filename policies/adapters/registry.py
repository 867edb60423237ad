"""The protocol of an adapter, and the choice of one by its settings; it imports no MLX."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from runtime.registry import Registry

if TYPE_CHECKING:
    import mlx.nn as nn


class NetworkShape(Protocol):
    """The sizes of a network that determine its number of trained parameters."""

    @property
    def parameters(self) -> int:
        """Returns the number of all weights."""
        ...

    @property
    def layers(self) -> int:
        """Returns the number of blocks."""
        ...

    def linears(self) -> Mapping[str, tuple[int, int]]:
        """Returns inputs and outputs of the linear modules of a block, by name."""
        ...


class Adapter(Protocol):
    """Chooses which weights of one network are trained. From `attach` on it belongs to that network."""

    @property
    def adds_weights(self) -> bool:
        """Returns whether it trains weights of its own beside frozen ones, not the network's own."""
        ...

    def parameter_count(self, shape: NetworkShape) -> int:
        """Returns how many parameters it would train in a network of this shape."""
        ...

    def attach(self, network: nn.Module, seed: int) -> None:
        """Makes exactly the trained weights trainable; new weights are drawn from `seed`.

        Raises BadInput if this network cannot be trained in this way.
        """
        ...

    def remember_reference(self, network: nn.Module) -> None:
        """Keeps what `reference` needs; it is called before the first step."""
        ...

    def reference(self, network: nn.Module) -> AbstractContextManager[None]:
        """Puts the network into its state before training for a `with` block."""
        ...

    def export(self, network: nn.Module, base: Path, folder: Path) -> None:
        """Writes the trained weights without the checkpoint `base`, in mlx-lm's format for adapters.

        Raises BadInput if the trained weights cannot be separated from the checkpoint.
        """
        ...

    def fuse(self, network: nn.Module, *, dequantize: bool) -> None:
        """Adds the adapter's weights to the network's permanently."""
        ...


ADAPTERS: Registry[Callable[[Any], Adapter]] = Registry("policies.adapters")
"""The constructors of adapters, by the class of their settings."""


def adapter_for(settings: object) -> Adapter:
    """Returns a new adapter for the settings `model.train`. No array is made before `attach`."""
    return ADAPTERS.of(settings)(settings)
