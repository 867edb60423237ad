"""What an adapter answers for, and which one the settings ask for. No MLX: estimates and checks ask, too."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from runtime.registry import Registry

if TYPE_CHECKING:
    import mlx.nn as nn


class NetworkShape(Protocol):
    """As much of a network as its number of trained parameters depends on."""

    @property
    def parameters(self) -> int:
        """All weights."""
        ...

    @property
    def layers(self) -> int:
        """Blocks."""
        ...

    def linears(self) -> Mapping[str, tuple[int, int]]:
        """Returns inputs and outputs of the linear modules of a block, by name."""
        ...


class Adapter(Protocol):
    """Decides what is trained of one network. An object belongs to one network, from `attach` on."""

    @property
    def adds_weights(self) -> bool:
        """Whether it trains weights of its own beside frozen ones, instead of the network's."""
        ...

    def parameter_count(self, shape: NetworkShape) -> int:
        """Returns how many parameters it would train in a network of this shape."""
        ...

    def attach(self, network: nn.Module, seed: int) -> None:
        """Makes trainable what is to be trained, and nothing else; new weights are drawn from `seed`.

        Raises BadInput if this network cannot be trained so.
        """
        ...

    def remember_reference(self, network: nn.Module) -> None:
        """Keeps whatever `reference` needs, before the first step."""
        ...

    def reference(self, network: nn.Module) -> AbstractContextManager[None]:
        """Has the network as it was before training, for the time of a `with` block."""
        ...

    def export(self, network: nn.Module, base: Path, folder: Path) -> None:
        """Writes what it trained, apart from the checkpoint `base`, in mlx-lm's format for adapters.

        Raises BadInput if it cannot be told apart.
        """
        ...

    def fuse(self, network: nn.Module, *, dequantize: bool) -> None:
        """Folds weights of its own into the network, for good."""
        ...


ADAPTERS: Registry[Callable[[Any], Adapter]] = Registry("policies.adapters")
"""What makes an adapter from its settings."""


def adapter_for(settings: object) -> Adapter:
    """Returns a new adapter as `model.train` asks for it. No array is made before `attach`."""
    return ADAPTERS.of(settings)(settings)
