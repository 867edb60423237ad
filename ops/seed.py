"""`pippin seed`: raises the seedling, once; later calls find it in Pippin's home.

"seedling-grown" is raised in the same way, from the same blank network by a longer recipe, and serves as a
teacher: `python -m ops.seed seedling-grown`.
"""

import asyncio
import hashlib
import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import msgspec

from configs import load
from configs.dump import to_toml
from configs.schema import Settings
from ops.terminal import say
from runtime.durable import publish_folder, retire_folder
from runtime.home import home, private_folder
from runtime.rundir import RunDirectory
from runtime.status import Status

RECIPES = Path(__file__).parent.parent / "configs"
RECIPE = RECIPES / "seedling.toml"
LEASE_S = 600.0
Progress = Callable[[Status], None]


def seedling_folder(seed: int = 0, name: str = RECIPE.stem) -> Path:
    """Returns the folder of the seedling of this recipe and seed, whether it exists or not."""
    told = f"{_recipe(name).read_text()}{architecture_text()}{seed}"
    return home() / "seedlings" / hashlib.sha256(told.encode()).hexdigest()[:12]


def architecture_text() -> str:
    """Returns the network's source, so that a change of it makes a new seedling."""
    return (RECIPE.parent.parent / "policies" / "seedling.py").read_text()


def ensure_seedling(
    seed: int = 0, progress: Progress | None = None, name: str = RECIPE.stem
) -> tuple[Path, bool]:
    """Returns the seedling's folder, and whether it had to be raised now (some seconds).

    The warm start is a run like any other, with its actors as plain objects of this process.
    """
    target = seedling_folder(seed, name)
    if target.is_dir():
        return target, False
    from actors.conductor import Conductor
    from actors.program import local_actor_system
    from ops.export import export
    from policies.device import gpu_lease
    from policies.seedling import write_blank

    private_folder(target.parent)
    work = Path(tempfile.mkdtemp(prefix=".raising-", dir=target.parent))
    try:
        with gpu_lease().hold("pippin seed", LEASE_S):
            write_blank(work / "blank", seed)
        settings = with_seed(load(_recipe(name), [f'model.path="{work / "blank"}"']), seed)
        run = RunDirectory(work, "warm-start")
        run.create(to_toml(settings), {})
        system = local_actor_system(settings, run)
        report = (lambda _: progress(run.read_status())) if progress else None
        try:
            asyncio.run(Conductor(settings, run, system, report).run())
        finally:
            system.stop()
        export(run, work / "seedling", step=None, adapters=False)
        about = {"made_by": "pippin seed", "seed": seed, "recipe": _recipe(name).name}
        (work / "seedling" / "pippin.json").write_text(json.dumps(about, sort_keys=True))
        if not target.exists():
            publish_folder(work / "seedling", target)
    except OSError:
        if not target.is_dir():  # else another process made the same seedling first
            raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target, True


def _recipe(name: str) -> Path:
    return RECIPES / f"{name}.toml"


def with_seed(settings: Settings, seed: int) -> Settings:
    """Returns the settings under another seed."""
    return msgspec.structs.replace(settings, seed=seed)


def remove_seedlings() -> int:
    """Deletes all seedlings; they can be raised again. Returns how many there were."""
    folder = home() / "seedlings"
    found = list(folder.iterdir()) if folder.is_dir() else []
    for path in found:
        retire_folder(path)
    return len(found)


if __name__ == "__main__":
    from runtime.blas import load_blas

    load_blas(exact=False)
    say(str(ensure_seedling(name=sys.argv[1])[0]))
