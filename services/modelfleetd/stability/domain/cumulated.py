"""Sums of windows of many series, each the difference of two cumulated sums."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from modelfleetd.stability.domain.exact import Floats, Integers
from modelfleetd.stability.domain.minute_series import MinuteSeries
from modelfleetd.stability.domain.window_verdict import Flags


class Cumulated:
    """Sums of windows of a matrix of series, each the difference of two cumulated sums."""

    def __init__(
        self, series: MinuteSeries, width: int, rows: Sequence[int] = (0,), span: tuple[int, int] | None = None
    ) -> None:
        """Makes them; of all minutes of the series, or of a span, whether or not all of it is known."""
        self.start, self.end = (series.start, series.end) if span is None else span
        self.width = width
        self._series, self._rows = series, np.array(rows)[:, np.newaxis]
        low, high = max(self.start, series.start), max(min(self.end, series.end), self.start)
        self._known = np.arange(low, max(low, high)) - series.start
        self._offset = low - self.start
        self._columns: dict[str, Floats] = {}

    def column(self, name: str) -> Floats:
        """Returns a column of the series that these are: rows × minutes. Only what is looked at is ever copied."""
        found: Floats = getattr(self._series, name)[self._rows, self._known]
        if found.shape[1] == self.end - self.start:
            return found
        padded = np.zeros((len(found), self.end - self.start))
        padded[:, self._offset : self._offset + found.shape[1]] = found
        return padded

    @property
    def waits(self) -> Flags:
        """Which series have examples whose labels come later: (series, 1)."""
        found: Flags = np.any(self.column("waiting") > 0, axis=1, keepdims=True)
        return found

    def window(self, column: str, ends: Integers) -> Floats:
        """Returns the sums of windows that end before these minutes: (series or 1, points)."""
        return self.between(column, ends - self.width, ends)

    def between(self, column: str, starts: Integers, ends: Integers) -> Floats:
        if column not in self._columns:
            self._columns[column] = cumulate(self.column(column))
        return self.difference(self._columns[column], starts, ends)

    def difference(self, cumulated: Floats, starts: Integers, ends: Integers) -> Floats:
        """Returns the sums between minutes by a column that has been cumulated."""
        high, low = (np.clip(minutes - self.start, 0, self.end - self.start) for minutes in (ends, starts))
        if len(ends) == 1:
            return cumulated[:, high[0]] - cumulated[:, low[0]]
        return np.take_along_axis(cumulated, high, axis=1) - np.take_along_axis(cumulated, low, axis=1)


def cumulate(column: Floats) -> Floats:
    found = np.zeros((column.shape[0], column.shape[1] + 1))
    np.cumsum(column, axis=1, out=found[:, 1:])
    return found
