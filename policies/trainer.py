"""What the learner drives, whatever the algorithm: annotated trajectories in, a new weights version out.

    Updater            gradients: every version is published as whole weights
    EvolutionTrainer   evolution strategies: a version is published as what it adds to the one before

and, on the sampler's side, what takes its model to a published version.
"""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from configs.schema import Settings
from policies import weights
from policies.algorithms import open_algorithm
from policies.arrays import Arrays
from policies.policy import Policy
from runtime.versions import WeightsVersion

MayGoOn = Callable[[bool], bool]
"""Asked between two parts of a step, with whether it has changed the weights already."""


class Trainer(Protocol):
    """Changes a policy's weights, step by step."""

    def annotated(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The batch with its advantages, where the algorithm has any."""
        ...

    def step(self, batch: pa.RecordBatch, may_go_on: MayGoOn = ...) -> dict[str, float]:
        """Train on an annotated batch; what is to be reported. Raises Interrupted if it may not go on."""
        ...

    def implied_rewards(self, batch: pa.RecordBatch, may_go_on: MayGoOn = ...) -> np.ndarray:
        """Returns what a preference loss takes the reward of each row [N] to be. Raises Interrupted if it may
        not go on.
        """
        ...

    def publish(self, folder: Path, version: int, *, whole: bool) -> WeightsVersion:
        """Write a version for the samplers; `whole` if they may know none of those before it."""
        ...

    def state(self) -> Arrays:
        """What a checkpoint needs besides the trained weights, by name."""
        ...

    def put(self, folder: Path) -> None:
        """Write what else a checkpoint needs, as files."""
        ...

    def restore(self, state: Arrays, folder: Path) -> None:
        """Go on from a checkpoint whose weights are loaded."""
        ...


def trainer_for(policy: Policy, settings: Settings) -> Trainer:
    """Returns the trainer that the algorithm names."""
    return _named(open_algorithm(settings).trainer)(policy, settings)


class WeightLoader(Protocol):
    """Takes a sampler's model to the versions that are published."""

    def load(self, version: WeightsVersion) -> None:
        """Have a version in the model. Raises Damaged if the files are not what was published."""
        ...


def weight_loader_for(policy: Policy, settings: Settings) -> WeightLoader:
    """Returns the weight loader that the algorithm names."""
    return _named(open_algorithm(settings).weight_loader)(policy, settings)


def _named(path: str) -> Any:
    """Returns what a path such as "policies.update:Updater" names."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


class WholeWeightLoader:
    """Loads whole weights."""

    def __init__(self, policy: Policy, settings: Settings) -> None:
        self._policy = policy
        self._digest = ""

    def load(self, version: WeightsVersion) -> None:
        """Load a version, unless it is there. Raises Damaged if the file is not what was published."""
        if version.digest == self._digest:  # a number alone may be of a step that was done anew
            return
        self._policy.load_trained(weights.load(Path(version.path), version.digest))
        self._digest = version.digest
