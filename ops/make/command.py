"""The command `pippin make-data`: its recipe read, its sum printed."""

from collections.abc import Sequence
from pathlib import Path

from configs.data_load import load_data
from configs.teachers import LocalTeacher
from ops.make.records import account_lines
from ops.make.store import journal_path
from ops.terminal import say
from runtime.blas import load_blas
from runtime.errors import RunFailed


def run(recipe: str, overrides: Sequence[str], out: Path, again: bool) -> int:
    """Makes the rows of `recipe` in `out`. Raises RunFailed if not one was kept."""
    settings = load_data(recipe, overrides)
    if isinstance(settings.teacher, LocalTeacher):
        load_blas(settings.exact)
    from ops.make.make import make

    made = make(settings, out, again=again)
    say("\n".join(account_lines(made.account)))
    if made.passing:
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in made.passing.items())
        say(
            f"{kinds}: may pass; to ask for these alone, remove {out.name} and give the same command",
            err=True,
        )
    if not made.account.rows:
        raise RunFailed(f"{out}: not written, no row was kept")
    say(f"{made.account.rows:,} rows {'in' if made.fresh else 'were already in'} {out}")
    if made.fresh:
        say(f"({journal_path(out).name} keeps every answer, rejected ones too; it may be deleted)")
    return 0
