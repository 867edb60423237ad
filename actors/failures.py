"""Counts rewards that failed in a row, and ends the run when there are too many."""

from runtime.errors import RunFailed
from runtime.tasks.prompt import Verdict


class FailuresInARow:
    """Holds the failures since the last reward that could be computed."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._failures: list[str] = []

    def see(self, verdict: Verdict) -> None:
        """Counts a verdict. Raises RunFailed with the first failure when `limit` came in a row."""
        if verdict.failure is None:
            self._failures.clear()
            return
        self._failures.append(f"{verdict.failure}: {verdict.detail}")
        if len(self._failures) >= self._limit:
            raise RunFailed(
                f"the reward failed {self._limit} times in a row (verifier.max_failures); "
                f"the first: {self._failures[0]}"
            )
