"""The account of every trajectory of a run: pulled = trained + dropped + failed + in flight."""

from collections import Counter
from collections.abc import Iterable

from msgspec import Struct, field


class Ledger(Struct, frozen=True, kw_only=True):
    """Counts of trajectories since the run began."""

    pulled: int = 0
    """Trajectories that were requested: prompts × samples, or rows of data."""
    trained: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    """Trajectories that were scored and not trained on, by reason."""
    failed: dict[str, int] = field(default_factory=dict)
    """Trajectories that could not be scored, by kind of failure."""

    @property
    def in_flight(self) -> int:
        """Returns the number of pulled trajectories that have no outcome yet."""
        return self.pulled - self.trained - sum(self.dropped.values()) - sum(self.failed.values())

    def pull(self, count: int) -> "Ledger":
        """Returns the ledger after `count` more trajectories were requested."""
        return Ledger(
            pulled=self.pulled + count,
            trained=self.trained,
            dropped=self.dropped,
            failed=self.failed,
        )

    def settle(
        self, trained: int, dropped: Iterable[str] = (), failed: Iterable[str] = ()
    ) -> "Ledger":
        """Returns the ledger with outcomes of trajectories in flight: a reason for each untrained one."""
        return Ledger(
            pulled=self.pulled,
            trained=self.trained + trained,
            dropped=dict(sorted((Counter(self.dropped) + Counter(dropped)).items())),
            failed=dict(sorted((Counter(self.failed) + Counter(failed)).items())),
        )

    def as_dict(self) -> dict[str, object]:
        """Returns the counts for a status, with the number in flight."""
        return {
            "pulled": self.pulled,
            "trained": self.trained,
            "dropped": self.dropped,
            "failed": self.failed,
            "in_flight": self.in_flight,
        }
