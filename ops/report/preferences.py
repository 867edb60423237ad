"""Reports what preference learning did to held-out pairs, by the run's own evaluations."""

from ops.report.contestants import Side
from runtime.status import PREFERENCE_ACCURACY, REWARD_MARGIN


def preference_sentences(side: Side) -> list[str]:
    """Returns a sentence for each metric of compared answers: at the base, and last up to the side's step."""
    status, found = side.run.read_status(), []
    for metric in (PREFERENCE_ACCURACY, REWARD_MARGIN):
        taken = [e for e in status.of_metric(metric) if e.step <= side.step and e.score is not None]
        if taken:
            base, last = taken[0], taken[-1]
            found.append(
                f"held-out {metric}: {base.score:.3f} before, {last.score:.3f} ± {last.stderr:.3f} "
                f"after step {last.step} (n = {last.n})"
            )
    return found
