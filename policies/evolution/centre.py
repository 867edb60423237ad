"""The unperturbed weights: a float32 master that only steps change.

No noise is ever added to the weights and subtracted again: in bfloat16 the rounding of that was measured to
drift further in 20 generations than the updates go. A member is made from the master and thrown away, and
the model holds the rounded master. A weights version is the base and the terms of every generation since;
`replay` applies them again, to the same bits, in any process. Plain steps give the same bits on any backend.
AdamW takes a norm and square roots, so its bits are the same on one backend only.
"""

import contextlib
import math
from collections.abc import Iterable, Iterator
from collections.abc import Sequence as Items

import mlx.core as mx
from msgspec import Struct

from configs.perturbations import AdamwStep, AnchorL2, AnchorSoft, Free, PlainStep
from policies.arrays import Arrays, number
from policies.evolution.perturbation import Member, Perturbation, Term, combined, perturbed
from policies.optimizers.registry import Optimizer
from policies.policy import Policy
from policies.weights import digest
from runtime.errors import Damaged


class Lineage(Struct, kw_only=True):
    """A weights version under one run's settings: its base, and the terms of all generations since."""

    base: str
    """Digest of the trained weights that the run started from."""
    generations: list[list[Term]]


class Applied(Struct, frozen=True):
    """The size of a step."""

    update_norm: float
    """Norm of θ' − θ, anchor included; 0.0 if there were no terms."""
    rate: float
    """The α, or learning rate, of this step."""


class Centre:
    """Holds the master of the perturbed weights, and their base if they are anchored.

    The policy must hold the base, to which the logged terms are added.
    """

    def __init__(
        self,
        policy: Policy,
        perturbation: Perturbation,
        update: PlainStep | AdamwStep,
        anchor: Free | AnchorL2 | AnchorSoft,
    ) -> None:
        self.perturbation = perturbation
        weights = policy.trained()
        self.base = digest(weights)
        self.master: Arrays = {n: weights[n].astype(mx.float32) for n in perturbation.shapes}
        self.dtypes = {name: weights[name].dtype for name in perturbation.shapes}
        self.optimizer: Optimizer | None = None
        """The optimiser of `master`, which `AdamwStep` needs."""
        self._update = update
        self._anchor = anchor
        self._origin = None if isinstance(anchor, Free) else dict(self.master)
        mx.eval(self.master)

    def apply(self, terms: Items[Term]) -> Applied:
        """Takes one generation's step. Without terms nothing changes: neither momentum nor anchor acts."""
        if not terms:
            return Applied(0.0, 0.0)
        before = self.master
        rate = self._step(terms)
        if self._origin is not None:
            self.master = {
                name: anchored(weight, self._origin[name], self._anchor, rate)
                for name, weight in self.master.items()
            }
        return Applied(distance(self.master, before), rate)

    def _step(self, terms: Items[Term]) -> float:
        if isinstance(self._update, PlainStep):
            alpha, stepped = self._update.alpha, {}
            for name, weight in self.master.items():
                stepped[name] = weight + combined(self.perturbation, name, terms) * alpha
                mx.eval(stepped[name])
            self.master = stepped
            return alpha
        if self.optimizer is None:
            raise ValueError('update "adamw" needs Centre.optimizer')
        gradients = {name: -combined(self.perturbation, name, terms) for name in self.master}
        self.master, _, rate = self.optimizer.step(self.master, gradients)
        return rate

    # ── in a model ───────────────────────────────────────────────────────────────────────────────

    def into(self, policy: Policy) -> None:
        """Loads the master into the model, rounded to the model's precision."""
        rounded = {name: w.astype(self.dtypes[name]) for name, w in self.master.items()}
        policy.load_trained({**policy.trained(), **rounded})

    @contextlib.contextmanager
    def member_in(self, policy: Policy, member: Member) -> Iterator[None]:
        """Puts one member's weights, of full or low rank, into the model for a `with` block.

        The model's copy of the centre is dropped meanwhile, and made again from the master after it.
        """
        weights = perturbed(self.perturbation, self.master, member, self.dtypes)
        policy.load_trained({**policy.trained(), **weights})
        del weights
        try:
            yield
        finally:
            self.into(policy)

    # ── versions ─────────────────────────────────────────────────────────────────────────────────

    def replay(self, lineage: Lineage) -> None:
        """Applies all generations of a log to a centre that is at its base.

        Raises Damaged if the log belongs to another base.
        """
        if lineage.base != self.base:
            raise Damaged(f"weights log: needs base {lineage.base[:12]}…, got {self.base[:12]}…")
        for terms in lineage.generations:
            self.apply(terms)

    def state(self) -> Arrays:
        """Returns the arrays of master and optimiser by name, which `restore` takes without the log."""
        optimizer = self.optimizer.state() if self.optimizer else {}
        return {
            **{f"master.{name}": weight for name, weight in self.master.items()},
            **{f"optimizer.{name}": array for name, array in optimizer.items()},
        }

    def restore(self, state: Arrays) -> None:
        """Continues from a saved state. Raises ValueError if the state belongs to another model."""
        expected = {f"master.{name}": weight.shape for name, weight in self.master.items()}
        given = {n: array.shape for n, array in state.items() if n.startswith("master.")}
        if expected != given:
            odd = sorted(expected.keys() ^ given.keys())[:3] or ["shapes"]
            raise ValueError(f"master does not fit this model: {', '.join(odd)}")
        self.master = {name: state[f"master.{name}"] for name in self.master}
        if self.optimizer:
            prefix = "optimizer."
            kept = {n.removeprefix(prefix): a for n, a in state.items() if n.startswith(prefix)}
            self.optimizer.restore(kept)


def anchored(
    weight: mx.array, origin: mx.array, anchor: Free | AnchorL2 | AnchorSoft, rate: float
) -> mx.array:
    """Returns the weight after the anchor has moved it towards its origin (2605.30148), evaluated."""
    drift = weight - origin
    match anchor:
        case Free():
            return weight
        case AnchorL2():
            moved = origin + drift * (1 - rate * anchor.strength)
        case AnchorSoft():
            length = mx.maximum(mx.abs(drift) - rate * anchor.strength, 0.0)
            moved = origin + mx.sign(drift) * length
    mx.eval(moved)
    return moved


def distance(one: Arrays, other: Arrays) -> float:
    """Returns ‖one − other‖ over all arrays that both have, such as an update or the drift from a base."""
    squares: Iterable[float] = (
        number(mx.square(one[name] - other[name].astype(mx.float32)).sum())
        for name in sorted(one.keys() & other.keys())
    )
    return math.sqrt(math.fsum(squares))
