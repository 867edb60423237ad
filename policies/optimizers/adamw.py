"""AdamW (Loshchilov & Hutter 2019), with full-precision masters where the weights are in half precision.

A learning rate of 1e-6 changes a bfloat16 weight by less than its last bit, so the step would be lost. The
optimiser therefore holds float32 masters and steps these, and the model gets them rounded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from configs.run import Optimizer
from policies.optimizers.registry import OPTIMIZERS
from policies.optimizers.schedule import learning_rate

if TYPE_CHECKING:
    from policies.arrays import Arrays


class AdamW:
    """MLX's AdamW with bias correction. `state()` returns its whole state, and `restore` takes it."""

    STATE_PER_WEIGHT: ClassVar[int] = 2
    STATE_NAME: ClassVar[str] = "AdamW's two moments"

    def __init__(self, settings: Optimizer, weights: Arrays, steps: int) -> None:
        import mlx.core as mx
        import mlx.optimizers as optim

        self._settings = settings
        self._steps = steps
        self._adam = optim.AdamW(
            learning_rate=settings.learning_rate,
            betas=[settings.beta1, settings.beta2],
            eps=settings.epsilon,
            weight_decay=settings.weight_decay,
            bias_correction=True,
        )
        self._dtypes = {name: weight.dtype for name, weight in weights.items()}
        self._masters = {
            name: weight.astype(mx.float32)
            for name, weight in weights.items()
            if weight.dtype != mx.float32
        }
        self.updates = 0
        self._adam.init({k: self._masters.get(k, w) for k, w in weights.items()})

    def step(self, weights: Arrays, gradients: Arrays) -> tuple[Arrays, float, float]:
        """Returns new weights, the norm of the gradient before it was scaled down, and the rate used.

        Raises FloatingPointError, changing nothing, if the gradient is not finite.
        """
        import mlx.core as mx

        from policies.gradient import norm_and_scale

        norm, scale = norm_and_scale(gradients, self._settings.max_grad_norm)
        rate = learning_rate(self._settings, self.updates, self._steps)
        adam: Any = self._adam
        adam.learning_rate = mx.array(rate)
        adam.state["step"] = adam.state["step"] + 1
        rounded: Arrays = {}
        for name, weight in weights.items():  # one at a time: only one tensor's copies exist
            gradient = gradients[name].astype(mx.float32) * scale
            whole = self._masters.get(name, weight)
            new = adam.apply_single(gradient, whole, adam.state[name])
            rounded[name] = new.astype(self._dtypes[name])
            if name in self._masters:
                self._masters[name] = new
            mx.eval(new, rounded[name], adam.state[name])
        self.updates += 1
        mx.eval(adam.state["step"])
        return rounded, norm, rate

    def state(self) -> Arrays:
        """Returns moments, step count and masters, by name."""
        import mlx.core as mx

        adam: Any = self._adam.state
        moments = {f"{m}.{name}": adam[name][m] for name in self._dtypes for m in ("m", "v")}
        masters = {f"master.{name}": array for name, array in self._masters.items()}
        counts = {"updates": mx.array(self.updates, mx.int64), "step": adam["step"]}
        return {**moments, **masters, **counts}

    def restore(self, state: Arrays) -> None:
        """Continues from a saved state. Raises ValueError if the state belongs to another model."""
        import mlx.core as mx

        from policies.arrays import number

        expected = self.state()
        if {k: v.shape for k, v in expected.items()} != {k: v.shape for k, v in state.items()}:
            odd = sorted(expected.keys() ^ state.keys())[:3] or ["shapes"]
            raise ValueError(f"optimiser state does not fit this model: {', '.join(odd)}")
        self.updates = int(number(state["updates"]))
        self._masters = {name: state[f"master.{name}"] for name in self._masters}
        moments = {name: {m: state[f"{m}.{name}"] for m in ("m", "v")} for name in self._dtypes}
        rate = mx.array(self._settings.learning_rate)
        self._adam.state = {**moments, "step": state["step"], "learning_rate": rate}
        mx.eval(self._masters, self._adam.state)


OPTIMIZERS.add(Optimizer, AdamW)
