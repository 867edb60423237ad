"""An optimiser and an adapter that the package does not know train in a real run, and survive a pause."""

from pathlib import Path

import msgspec
import pytest

from configs.schema import Settings
from policies import weights
from runtime import checkpoint
from tests.actors.tiny import go, new_run, settings
from tests.policies.adapters.gains import Gains
from tests.policies.optimizers.sign_descent import SignSettings


def with_new_kinds(folder: Path) -> Settings:
    plain = settings(folder)
    return msgspec.structs.replace(
        plain,
        model=msgspec.structs.replace(plain.model, train=Gains()),
        optimizer=SignSettings(learning_rate=1e-2),
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("kinds")


def saved(run) -> tuple[dict, dict]:
    found, passed_over = checkpoint.newest(run.checkpoints)
    assert found is not None and not passed_over
    return (
        weights.load(found.path / "weights.safetensors", found.state["weights_digest"]),
        weights.load(found.path / "optimizer.safetensors", found.state["optimizer_digest"]),
    )


def test_kinds_from_outside_train_pause_and_go_on_bit_for_bit(folder):
    wanted = with_new_kinds(folder)
    straight, halted = new_run(folder, "straight"), new_run(folder, "halted")
    whole = go(wanted, straight)
    assert whole.state == "finished"
    assert go(wanted, halted, stop_after=2).state == "paused"
    again = go(wanted, halted)
    assert (again.state, again.step) == ("finished", 4)
    assert again.weights_digest == whole.weights_digest
    assert again.optimizer_digest == whole.optimizer_digest

    gains, state = saved(straight)
    assert gains and all(name.endswith(".gain") for name in gains)
    assert any(bool((gain != 1).any()) for gain in gains.values())
    assert set(state) == {"updates", *(f"mean.{name}" for name in gains)}
    assert int(state["updates"].item()) == 4
