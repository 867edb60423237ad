"""The protocol of an optimiser, and the choice of one by its settings; it imports no MLX."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from runtime.registry import Registry

if TYPE_CHECKING:
    from policies.arrays import Arrays


class Optimizer(Protocol):
    """Steps named arrays along their gradients, for `steps` updates in all."""

    STATE_PER_WEIGHT: ClassVar[int]
    """Number of float32 numbers that it keeps for each trained weight, besides a full-precision master."""
    STATE_NAME: ClassVar[str]
    """Name of this state in messages, such as "AdamW's two moments"."""

    def __init__(self, settings: Any, weights: Arrays, steps: int) -> None: ...

    @property
    def updates(self) -> int:
        """Returns the number of updates taken so far."""
        ...

    def step(self, weights: Arrays, gradients: Arrays) -> tuple[Arrays, float, float]:
        """Returns new weights, the gradient's norm before any limit, and the learning rate of this update.

        Raises FloatingPointError, changing nothing, if the gradient is not finite.
        """
        ...

    def state(self) -> Arrays:
        """Returns everything that `restore` needs, by name."""
        ...

    def restore(self, state: Arrays) -> None:
        """Continues from a saved state. Raises ValueError if the state belongs to another model."""
        ...


OPTIMIZERS: Registry[type[Optimizer]] = Registry("policies.optimizers")
"""The optimisers, by the class of their settings."""


def optimizer_for(settings: object, weights: Arrays, steps: int) -> Optimizer:
    """Returns a new optimiser of `weights` by the settings."""
    return OPTIMIZERS.of(settings)(settings, weights, steps)
