"""What the benchmarks share: a table for people and a JSON file for everything else."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def write_json(path: Path, result: dict[str, Any]) -> None:
    """The whole result, indented."""
    path.write_text(json.dumps(result, indent=2) + "\n")


def print_table(header: list[str], rows: list[list[str]]) -> None:
    """Columns as wide as they need to be: the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows)]
    for row in (header, *rows):
        first, *others = (
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths))
        )
        print("  " + "   ".join((first, *others)).rstrip())


@contextlib.contextmanager
def alone_on_the_gpu(name: str) -> Iterator[None]:
    """Hold the machine's lease while a benchmark computes. MLX is imported here: choose the BLAS first."""
    from policies.device import gpu_lease

    with gpu_lease().hold(f"pippin bench {name}", deadline_s=600.0):
        yield
