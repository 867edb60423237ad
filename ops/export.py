"""`pippin export RUN DIR`: a run's weights as a checkpoint that mlx-lm, or anything else, loads."""

import json
import shutil
from pathlib import Path

from configs import load
from runtime import checkpoint
from runtime.errors import BadInput
from runtime.rundir import RunDirectory


def export(
    run: RunDirectory, target: Path, *, step: int | None, adapters: bool, dequantize: bool
) -> int:
    """Write the weights of `step` (the newest checkpoint's by default) to `target`; returns the step.

    Fused into the whole model, or only the adapters in mlx-lm's own format. Raises BadInput if the target
    is there already or there is no such checkpoint; nothing is left at the target unless it is whole.
    """
    run.require()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise BadInput(
            f"{target}: is there already; choose a folder that does not exist or is empty"
        )
    present = checkpoint.steps(run.checkpoints)
    if not present:
        raise BadInput(f"{run.path}: has no checkpoint yet")
    if step is not None and step not in present:
        listed = ", ".join(map(str, present))
        raise BadInput(f"--step: {run.name} has checkpoints of steps {listed}, none of {step}")
    wanted = step if step is not None else present[-1]
    found = checkpoint.read(run.checkpoints, wanted)

    from policies import weights
    from policies.model import load_policy, save_adapters, save_checkpoint

    settings = load(run.recipe, [])
    policy = load_policy(settings.model, Path(settings.model.path), settings.seed)
    policy.load_trained(
        weights.load(found.path / "weights.safetensors", found.state["weights_digest"])
    )
    aside = target.with_name(f".{target.name}.writing")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        if adapters:
            save_adapters(policy, aside)
        else:
            save_checkpoint(policy, aside, dequantize=dequantize)
        about = {"run": run.name, "step": wanted, "weights_digest": found.state["weights_digest"]}
        (aside / "pippin.json").write_text(json.dumps(about, indent=2, sort_keys=True))
        if target.exists():
            target.rmdir()
        aside.rename(target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return wanted
