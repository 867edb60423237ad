"""An optimiser is one file and its settings: what it keeps is its own affair, and comes back bit for bit."""

import mlx.core as mx
import pytest

from configs.model import Model
from configs.run import Optimizer
from policies.optimizers.adamw import AdamW
from policies.optimizers.registry import OPTIMIZERS, optimizer_for
from tests.policies.optimizers.sign_descent import SignDescent, SignSettings


def test_the_settings_class_decides():
    arrays = {"w": mx.ones(3)}
    assert isinstance(optimizer_for(Optimizer(), arrays, 1), AdamW)
    assert isinstance(optimizer_for(SignSettings(), arrays, 1), SignDescent)
    with pytest.raises(LookupError, match=r"policies\.optimizers: no file there adds Model, only"):
        OPTIMIZERS.of(Model())
