"""The protocols of trainers and weight loaders, and the loader of whole weights.

A trainer turns annotated trajectories into a new weights version, in the learner's process:

    Updater            gradients: every version is published as whole weights
    EvolutionTrainer   evolution strategies: a version is published as the terms that it adds

A weight loader brings a sampler's model to a published version.
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
"""Called before a micro-batch with whether the step has changed the weights; returns whether to go on."""


class Trainer(Protocol):
    """Changes a policy's weights, step by step."""

    def annotated(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Returns the batch with the algorithm's annotation."""
        ...

    def step(self, batch: pa.RecordBatch, may_go_on: MayGoOn = ...) -> dict[str, float]:
        """Trains on an annotated batch and returns metrics. Raises Interrupted if it may not go on."""
        ...

    def implied_rewards(self, batch: pa.RecordBatch, may_go_on: MayGoOn = ...) -> np.ndarray:
        """Returns the reward of each row [N] that is implied by the preference loss.

        Raises Interrupted if `may_go_on` says no between two micro-batches.
        """
        ...

    def publish(self, folder: Path, version: int, *, whole: bool) -> WeightsVersion:
        """Writes a version for the samplers; with `whole` it does not depend on earlier versions."""
        ...

    def state(self) -> Arrays:
        """Returns the arrays by name that a checkpoint needs besides the trained weights."""
        ...

    def put(self, folder: Path) -> None:
        """Writes the other files that a checkpoint needs."""
        ...

    def restore(self, state: Arrays, folder: Path) -> None:
        """Continues from a checkpoint whose weights are loaded."""
        ...


def trainer_for(policy: Policy, settings: Settings) -> Trainer:
    """Returns the trainer that the algorithm names."""
    return _named(open_algorithm(settings).trainer)(policy, settings)


class WeightLoader(Protocol):
    """Brings a sampler's model to the versions that are published."""

    def load(self, version: WeightsVersion) -> None:
        """Loads a version into the model. Raises Damaged if the files are not what was published."""
        ...


def weight_loader_for(policy: Policy, settings: Settings) -> WeightLoader:
    """Returns the weight loader that the algorithm names."""
    return _named(open_algorithm(settings).weight_loader)(policy, settings)


def _named(path: str) -> Any:
    """Returns the object that a path such as "policies.update:Updater" names."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


class WholeWeightLoader:
    """Loads whole weights."""

    def __init__(self, policy: Policy, settings: Settings) -> None:
        self._policy = policy
        self._digest = ""

    def load(self, version: WeightsVersion) -> None:
        """Loads a version unless it is loaded already. Raises Damaged if the file was changed."""
        if (
            version.digest == self._digest
        ):  # the number is not enough: a step may be repeated after a crash
            return
        self._policy.load_trained(weights.load(Path(version.path), version.digest))
        self._digest = version.digest
