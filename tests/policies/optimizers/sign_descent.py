"""Sign descent with a memory (Bernstein et al. 2018): an optimiser from outside the package, for tests."""

from typing import ClassVar

import mlx.core as mx

from configs.fields import Closed
from policies.arrays import Arrays, number
from policies.gradient import norm_and_scale
from policies.optimizers.registry import OPTIMIZERS


class SignSettings(Closed, frozen=True, tag_field="name", tag="sign"):
    """Its settings, as they would stand in the schema."""

    learning_rate: float = 1e-3
    memory: float = 0.5


class SignDescent:
    """Moves each weight by the rate against the sign of a running mean of its gradients."""

    STATE_PER_WEIGHT: ClassVar[int] = 1
    STATE_NAME: ClassVar[str] = "the running mean of sign descent"

    def __init__(self, settings: SignSettings, weights: Arrays, steps: int) -> None:
        self._settings = settings
        self._means = {name: mx.zeros(w.shape, mx.float32) for name, w in weights.items()}
        self.updates = 0

    def step(self, weights: Arrays, gradients: Arrays) -> tuple[Arrays, float, float]:
        norm, _ = norm_and_scale(gradients, limit=0)
        rate, memory = self._settings.learning_rate, self._settings.memory
        self._means = {
            name: memory * mean + (1 - memory) * gradients[name].astype(mx.float32)
            for name, mean in self._means.items()
        }
        new = {
            name: (w.astype(mx.float32) - rate * mx.sign(self._means[name])).astype(w.dtype)
            for name, w in weights.items()
        }
        mx.eval(new, self._means)
        self.updates += 1
        return new, norm, rate

    def state(self) -> Arrays:
        return {
            "updates": mx.array(self.updates),
            **{f"mean.{n}": a for n, a in self._means.items()},
        }

    def restore(self, state: Arrays) -> None:
        self.updates = int(number(state["updates"]))
        self._means = {name: state[f"mean.{name}"] for name in self._means}


OPTIMIZERS.add(SignSettings, SignDescent)
