"""The output of the benchmarks: a table for people and a JSON file for everything else."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ops.table import Table
from ops.terminal import say


def write_json(path: Path, result: dict[str, Any]) -> None:
    """Writes the whole result, indented."""
    path.write_text(json.dumps(result, indent=2) + "\n")


def print_table(header: list[str], rows: list[list[str]]) -> None:
    """Prints columns: the first is aligned to the left, the others to the right."""
    say(Table(header=header, rows=rows, indent=2))


@contextlib.contextmanager
def alone_on_the_gpu(name: str) -> Iterator[None]:
    """Holds the machine's lease while a benchmark computes. MLX is imported here: choose the BLAS
    first.
    """
    from policies.device import gpu_lease

    with gpu_lease().hold(f"pippin bench {name}", deadline_s=600.0):
        yield
