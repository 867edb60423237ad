"""Data recipes for tests, with a tiny checkpoint or a local server as the teacher."""

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import msgspec

from configs.data_consistency import problems
from configs.data_schema import DataSettings
from ops.make.make import Made, make
from ops.make.progress import Progress
from tests.actors import tiny

ROOT = Path(__file__).parents[2]
Rows = list[dict[str, Any]]


def settings(**tables: Any) -> DataSettings:
    """Returns the checked settings of a recipe."""
    made = msgspec.convert(tables, DataSettings)
    assert list(problems(made)) == []
    return made


def ending(folder: Path, **shape: Any) -> Path:
    """Returns the checkpoint of a random network that ends its answers after about four tokens."""
    if not folder.exists():
        weights = tiny.checkpoint(folder, **shape) / "model.safetensors"
        arrays = dict(mx.load(str(weights)))  # type: ignore[arg-type]
        embedding = arrays["model.embed_tokens.weight"]
        embedding[:, 0] = 0.1
        embedding[2, 0] = 1.0  # <end>, in a head that is tied to it
        mx.save_safetensors(str(weights), arrays, {"format": "mlx"})
    return folder


def local(folder: Path, reward: str = tiny.COARSE, **tables: Any) -> DataSettings:
    """Returns a recipe of rejection sampling: six prompts, a random network of one layer."""
    raw: dict[str, Any] = {
        "seed": 3,
        "teacher": {"name": "local", "path": str(ending(folder / "model"))},
        "task": {
            "name": "jsonl",
            "train": str(tiny.prompts(folder)),
            "reward": str(tiny.reward_file(folder, reward)),
        },
        "method": {"name": "rejection", "prompts": 6, "samples": 4},
        "sampling": {"max_new_tokens": 6, "slots": 8},
        "limits": {"shortest_characters": 2},
    }
    merged = raw | tables
    return settings(**{k: v for k, v in merged.items() if v is not None})


def remote(folder: Path, url: str, **tables: Any) -> DataSettings:
    """Returns a recipe that asks a server for sums."""
    raw: dict[str, Any] = {
        "teacher": {"name": "endpoint", "url": url, "model": "big", "attempts": 1, "timeout_s": 20},
        "task": {"name": "addition"},
        "method": {"name": "rejection", "prompts": 6, "samples": 2},
        "sampling": {"max_new_tokens": 8},
        "dedup": {"name": "none"},
    }
    return settings(**(raw | tables))


def made(settings: DataSettings, out: Path, **options: Any) -> Made:
    """Makes the rows without printing."""
    return make(settings, out, progress=Progress(io.StringIO()), **options)


def rows(out: Path) -> Rows:
    """Returns the rows of a file."""
    return [json.loads(line) for line in out.read_bytes().splitlines()]


def timeless(rows: Rows) -> Rows:
    """Returns the rows without the times, which two equal calls need not share."""
    return [json.loads(json.dumps(row), object_hook=_without_time) for row in rows]


def _without_time(value: dict[str, Any]) -> dict[str, Any]:
    return {name: item for name, item in value.items() if name != "time"}


def recipe(folder: Path, settings: DataSettings) -> Path:
    """Writes the settings as a recipe file, for the command."""
    path = folder / "recipe.toml"
    path.write_text("\n".join(_lines(msgspec.to_builtins(settings), ())))
    return path


def _lines(table: dict[str, Any], key: tuple[str, ...]) -> list[str]:
    values = {k: v for k, v in table.items() if not isinstance(v, dict) and v is not None}
    inner = {k: v for k, v in table.items() if isinstance(v, dict)}
    lines = [f"[{'.'.join(key)}]"] if key else []
    lines += [f"{k} = {json.dumps(v)}" for k, v in values.items()]
    for name, item in inner.items():
        lines += _lines(item, (*key, name))
    return lines


def command(recipe: Path, out: Path, *options: str, **environment: str) -> subprocess.Popen[str]:
    """Runs the command in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "ops.cli", "make-data", str(recipe), "--out", str(out), *options],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell that runs the tests in the background ignores it, and child processes inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
