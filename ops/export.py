"""`pippin export RUN DIR`: a run's weights as a checkpoint that mlx-lm, or anything else, loads."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from configs import load
from configs.schema import Settings
from ops.preflight import check_same_model
from runtime import checkpoint
from runtime.checkpoint import Checkpoint
from runtime.errors import BadInput, Damaged
from runtime.rundir import RunDirectory

if TYPE_CHECKING:
    from ops.export_check import Answer
    from policies.policy import Policy

TRIES = 5
"""A run that goes on may retire a checkpoint while it is read; then the newest is another."""
LEASE_S = 600.0


def export(
    run: RunDirectory,
    target: Path,
    *,
    step: int | None,
    adapters: bool,
    quantize: bool = False,
    tell: Callable[[str], None] = lambda sentence: None,
) -> int:
    """Write the weights of `step` (the newest checkpoint's by default) to `target`; returns the step.

    Fused into the whole model, or only the adapters in mlx-lm's own format. A quantised base is written in
    full precision, since rounding the adapters into it loses most of what they learned; with `quantize` it is
    quantised again. What was written is loaded and compared with the trained policy, and `tell` gets the
    result. Raises BadInput if the target is there already or there is no such checkpoint; nothing is left at
    the target unless it is whole.
    """
    run.require()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise BadInput(
            f"{target}: is there already; choose a folder that does not exist or is empty"
        )
    settings = load(run.recipe, [])
    check_same_model(run, settings)
    found, trained = trained_weights(run, step)

    from ops.export_check import trained_answers
    from policies.device import gpu_lease
    from policies.load import load_policy

    with gpu_lease().hold(f"pippin export {run.name}", LEASE_S):
        policy = load_policy(settings.model, Path(settings.model.path), settings.seed)
        policy.load_trained(trained)
        if quantize and (adapters or "quantization" not in policy.config):
            what = "adapters are never quantised" if adapters else "the run's base is not quantised"
            raise BadInput(f"--quantize: {what}; leave it out")
        before, unchecked = trained_answers(settings, policy)
        about = {
            "run": run.name,
            "step": found.step,
            "weights_digest": found.state["weights_digest"],
        }
        _write(target, policy, about, adapters, quantize)
        del policy
        adapters_digest = about["weights_digest"] if adapters else ""
        tell(unchecked or _compared(settings, before, target, adapters_digest))
    return found.step


def _compared(settings: Settings, before: "list[Answer]", written: Path, digest: str) -> str:
    """Returns what a comparison of the written files with the trained policy's answers says.

    `digest` is that of the adapters if only they were written, else "".
    """
    import mlx.core as mx

    from ops.export_check import difference
    from policies import weights
    from policies.load import load_frozen, load_policy

    if digest:
        policy = load_policy(settings.model, Path(settings.model.path), settings.seed)
        policy.load_trained(weights.load(written / "adapters.safetensors", digest))
    else:
        model = replace(settings.model, path=str(written), quantize_bits=0, dtype="checkpoint")
        policy = load_frozen(model, written)
    said = difference(before, policy)
    mx.clear_cache()
    return said


def trained_weights(run: RunDirectory, step: int | None) -> tuple[Checkpoint, Any]:
    """A checkpoint and its weights. Without a step, damaged ones are passed over for the one before.

    Raises BadInput if there is no such checkpoint, or none behind the first step.
    """
    from policies import weights

    present = checkpoint.steps(run.checkpoints)
    if not present:
        raise BadInput(f"{run.path}: has no checkpoint yet")
    if step is not None and step not in present:
        listed = ", ".join(map(str, present))
        raise BadInput(f"--step: {run.name} has checkpoints of steps {listed}, none of {step}")
    for tried in range(TRIES):
        found, passed_over = None, []
        try:
            if step is not None:
                found = checkpoint.read(run.checkpoints, step)
            else:
                found, passed_over = checkpoint.newest(run.checkpoints)
            if found is None:
                raise Damaged(f"no checkpoint is intact: {passed_over[0]}")
            if not found.step:  # a pause saved answers, and there is nothing else to be saved yet
                raise BadInput(f"{run.path}: has not learned a step yet")
            file = found.path / "weights.safetensors"
            return found, weights.load(file, found.state["weights_digest"])
        except Damaged:
            retired = found is not None and not found.path.exists()
            if tried == TRIES - 1 or not (retired or run.locked()):
                raise
    raise AssertionError("unreachable")


def _write(
    target: Path, policy: "Policy", about: dict[str, Any], adapters: bool, quantize: bool
) -> None:
    from policies.save import save_adapters, save_checkpoint

    aside = target.with_name(f".{target.name}.writing")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        if adapters:
            save_adapters(policy, aside)
        else:
            save_checkpoint(policy, aside, dequantize=not quantize)
        (aside / "pippin.json").write_text(json.dumps(about, indent=2, sort_keys=True))
        if target.exists():
            target.rmdir()
        aside.rename(target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
