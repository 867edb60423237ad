"""Every trajectory that a run pulled, accounted for: pulled = trained + dropped + failed + in flight."""

from collections import Counter
from collections.abc import Iterable

from msgspec import Struct, field


class Ledger(Struct, frozen=True, kw_only=True):
    """Counts of trajectories since the run began."""

    pulled: int = 0
    """Asked for: prompts × samples, or rows of data."""
    trained: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    """Scored and not trained on, by reason."""
    failed: dict[str, int] = field(default_factory=dict)
    """Could not be scored, by kind."""

    @property
    def in_flight(self) -> int:
        """Pulled, and nothing is decided about them yet."""
        return self.pulled - self.trained - sum(self.dropped.values()) - sum(self.failed.values())

    def pull(self, count: int) -> "Ledger":
        """`count` more were asked for."""
        return Ledger(
            pulled=self.pulled + count,
            trained=self.trained,
            dropped=self.dropped,
            failed=self.failed,
        )

    def settle(
        self, trained: int, dropped: Iterable[str] = (), failed: Iterable[str] = ()
    ) -> "Ledger":
        """What became of some that were in flight: one reason for each that was not trained on."""
        return Ledger(
            pulled=self.pulled,
            trained=self.trained + trained,
            dropped=dict(sorted((Counter(self.dropped) + Counter(dropped)).items())),
            failed=dict(sorted((Counter(self.failed) + Counter(failed)).items())),
        )

    def as_dict(self) -> dict[str, object]:
        """For a status: the counts, with what is in flight."""
        return {
            "pulled": self.pulled,
            "trained": self.trained,
            "dropped": self.dropped,
            "failed": self.failed,
            "in_flight": self.in_flight,
        }
