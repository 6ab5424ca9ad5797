"""How long statistics are kept, and at what width of time."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from modelfleetd.stability.domain.maturity import minute_of

DAY: Final = 24 * 60
# Replicas' clocks differ: what one still writes no other may have dropped, and what one reads all must have written.
MARGIN: Final = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class Table:
    """A table whose rows belong to spans of time, and which is cut into partitions by time."""

    name: str
    width: int  # minutes that a row is of
    kept: timedelta
    partition_days: int

    @property
    def partition_minutes(self) -> int:
        return self.partition_days * DAY

    def read_from(self, now: datetime) -> int:
        """Returns the first minute from which on rows are complete."""
        return -(-minute_of(now - self.kept) // self.width) * self.width

    def written_from(self, now: datetime) -> int:
        """Returns the first minute whose rows are still written: what is older goes into wider rows only."""
        return minute_of(now - self.kept - MARGIN) // self.width * self.width

    def kept_from(self, now: datetime) -> int:
        """Returns the first minute that a partition has to hold."""
        return minute_of(now - self.kept - 2 * MARGIN)


# Examples with known labels are taken for 90 days: bins hold all that is written. Delays are learned from labels of
# predictions, the youngest of which that are mature may be 30 days old.
EXPOSURE: Final = Table("exposure", 1, timedelta(days=8), 1)
POSITIVES: Final = Table("positives", 1, timedelta(days=8), 1)
REJECTIONS: Final = Table("rejections", 1, timedelta(days=8), 4)
TOTALS_5MIN: Final = Table("totals_5min", 5, timedelta(days=35), 7)
TOTALS_HOUR: Final = Table("totals_hour", 60, timedelta(days=400), 28)
POSITIVES_HOUR: Final = Table("positives_hour", 60, timedelta(days=42), 14)
BINS: Final = Table("bins", 60, timedelta(days=98), 14)

TABLES: Final = (EXPOSURE, POSITIVES, REJECTIONS, TOTALS_5MIN, TOTALS_HOUR, POSITIVES_HOUR, BINS)
