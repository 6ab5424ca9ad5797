"""Shapes of arguments: shares, sizes and spans of time, as people write them."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal, InvalidOperation
from typing import Any, ClassVar

import click
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

_ABOVE_ZERO = "must be above 0, for example 2h"


class ShareParameter(click.ParamType[int]):
    """A share of traffic: `20%`, `2.5%` or `250bp`; basis points inside."""

    name = "share"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Basis points, 1 to 10,000, exactly."""
        if isinstance(value, int):
            return value
        text = str(value).strip()
        try:
            if text.endswith("bp"):
                points = Decimal(text[:-2])
            elif text.endswith("%"):
                points = Decimal(text[:-1]) * 100
            else:
                raise InvalidOperation
        except InvalidOperation:
            self.fail(f"'{text}' is not a share; write 20%, 2.5% or 250bp", param, ctx)
        if points != points.to_integral_value() or not 1 <= points <= 10_000:
            self.fail(f"'{text}' is not between 0.01% and 100% in steps of 0.01%", param, ctx)
        return int(points)


class DurationParameter(click.ParamType[Duration]):
    """A span of time: `30s`, `5m`, `2h`, `1d`, `4w`, `1h30m`."""

    name = "duration"
    _UNITS: ClassVar = {
        "ms": 1_000_000,
        "s": 10**9,
        "m": 60 * 10**9,
        "h": 3600 * 10**9,
        "d": 86_400 * 10**9,
        "w": 604_800 * 10**9,
    }

    def __init__(self, *, above_zero: bool = False) -> None:
        self._above_zero = above_zero

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Duration:
        """A proto's duration."""
        if isinstance(value, Duration):
            return value
        text = str(value).strip()
        if self._above_zero and text.startswith("-"):
            self.fail(_ABOVE_ZERO, param, ctx)
        if not re.fullmatch(r"(\d+(\.\d+)?(ms|s|m|h|d|w))+", text):
            self.fail(f"'{text}' is not a span of time; write 30s, 5m, 2h or 1h30m", param, ctx)
        nanos = sum(
            int(Decimal(number) * self._UNITS[unit])
            for number, _, unit in re.findall(r"(\d+(\.\d+)?)(ms|s|m|h|d|w)", text)
        )
        if self._above_zero and not nanos:
            self.fail(_ABOVE_ZERO, param, ctx)
        return Duration(seconds=nanos // 10**9, nanos=nanos % 10**9)


class RatioParameter(click.ParamType[float]):
    """A ratio: `1%` or `0.01`."""

    name = "ratio"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The ratio: 0.01 for either."""
        if isinstance(value, float):
            return value
        text = str(value).strip()
        try:
            ratio = Decimal(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
        except InvalidOperation:
            self.fail(f"'{text}' is not a ratio; write 1% or 0.01", param, ctx)
        if not 0 < ratio < 1000:
            self.fail(f"'{text}' is not above 0 and below 1000", param, ctx)
        return float(ratio)


class RangeParameter(click.ParamType[tuple[float, float]]):
    """A closed range: `0.95..1.05`; `..1.05` begins at 0, `0.95..` has no end."""

    name = "range"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, float]:
        """Both ends."""
        if isinstance(value, tuple):
            return value
        low, dots, high = str(value).strip().partition("..")
        try:
            ends = float(low or 0), float(high or math.inf)
        except ValueError:
            dots, ends = "", (0.0, 0.0)
        if not dots or not (low or high) or not 0 <= ends[0] <= ends[1]:
            self.fail(f"'{value}' is not a range; write LOW..HIGH, such as 0.95..1.05, ..1.05 or 0.95..", param, ctx)
        return ends


class SizeParameter(click.ParamType[int]):
    """A number of bytes: `64MiB`, `1.5GB`, `4096`."""

    name = "size"
    _UNITS: ClassVar = {"": 1, "B": 1} | {
        f"{letter}{unit}": base**power
        for power, letter in enumerate("kMGT", 1)
        for unit, base in (("B", 1000), ("iB", 1024))
    }

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Bytes."""
        if isinstance(value, int):
            return value
        found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*((?:[kMGT]i?)?B)?", str(value).strip().replace("K", "k"))
        if found is None:
            self.fail(f"'{value}' is not a size; write 64MiB, 1.5GB or 4096", param, ctx)
        return int(Decimal(found[1]) * self._UNITS[found[2] or ""])


class EntryParameter(click.ParamType[str]):
    """An entry as people write it: `feed_ctr`, `feed_ctr/v7`, or its full name; the full name inside."""

    name = "entry"

    def __init__(self, *, others: tuple[str, ...] = ()) -> None:
        self._collections = ("modelTypes", *others)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The full name of a model type or model, or of what else is accepted; empty where nothing is given."""
        text = str(value)
        if not text or text.partition("/")[0] in self._collections:
            return text
        ids = text.split("/")
        if len(ids) > 2:
            accepted = ", ".join(f"{collection}/ID" for collection in self._collections)
            self.fail(f"'{text}' is no entry; write TYPE, TYPE/MODEL or a full name ({accepted})", param, ctx)
        return "modelTypes/" + "/models/".join(ids)


class EndParameter(click.ParamType[datetime | timedelta]):
    """An end: a day, whose end is meant, a moment, or a span from the start."""

    name = "end"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime | timedelta:
        """A moment in UTC, or how long after the start."""
        if isinstance(value, datetime | timedelta):
            return value
        text = str(value).strip()
        if re.fullmatch(r"\d{4}-\d{2}-\d{2}", text):
            text += "T23:59:59"
        try:
            moment = datetime.fromisoformat(text)
        except ValueError:
            pass
        else:
            return moment.replace(tzinfo=moment.tzinfo or UTC).astimezone(UTC)
        try:
            span: Duration = SPAN.convert(text, param, ctx)
        except click.BadParameter as error:
            if error.message == _ABOVE_ZERO:
                raise
            self.fail(
                f"'{value}' is no end; write a day (2026-12-24), a time (2026-12-24T18:00Z) or a span (30d)",
                param,
                ctx,
            )
        return span.ToTimedelta()


class UntilParameter(click.ParamType[datetime]):
    """An end that is counted from now where it is a span."""

    name = "until"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        """A moment in UTC."""
        end: datetime | timedelta = END.convert(value, param, ctx)
        return end if isinstance(end, datetime) else datetime.now(UTC) + end


@dataclass(frozen=True, slots=True)
class Point:
    """A point in history: a revision, or the newest one at a time; neither: now."""

    revision: int = 0
    time: datetime | None = None

    def fields(self, prefix: str) -> dict[str, Any]:
        """The fields of a request that say so: `{prefix}_revision`, `{prefix}_time`."""
        if self.time is not None:
            stamp = Timestamp()
            stamp.FromDatetime(self.time)
            return {f"{prefix}_time": stamp}
        return {f"{prefix}_revision": self.revision} if self.revision else {}


class PointParameter(click.ParamType[Point]):
    """A point in history: `41` (a revision), `2026-11-24T15:00Z`, `2026-11-24`, `2h`, `yesterday`, `tuesday`, `now`."""

    name = "point"
    _DAYS: ClassVar = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Point:
        """The point. Days are meant at the present time of day, in UTC as all times that name no zone."""
        if isinstance(value, Point):
            return value
        text, now = str(value).strip().lower(), datetime.now(UTC)
        if text == "now":
            return Point()
        if revision := re.fullmatch(r"r?([1-9]\d{0,17})|revisions/([1-9]\d{0,17})", text):
            return Point(revision=int(revision[1] or revision[2]))
        if text == "yesterday":
            return Point(time=now - timedelta(days=1))
        if text in self._DAYS:
            # The last such day before today.
            days = (now.weekday() - self._DAYS.index(text) - 1) % 7 + 1
            return Point(time=now - timedelta(days=days))
        try:
            moment = datetime.fromisoformat(str(value).strip())
            return Point(time=moment.replace(tzinfo=moment.tzinfo or UTC).astimezone(UTC))
        except (ValueError, OverflowError):
            pass
        if not re.fullmatch(r"(\d{1,9}[smhdw])+( ago)?", text):
            self.fail(
                f"'{text}' is no point in history; write a revision (41), a time (2026-11-24T15:00Z, yesterday,"
                " tuesday), how long ago (2h, 3d), or now",
                param,
                ctx,
            )
        try:
            return Point(time=now - DURATION.convert(text.removesuffix(" ago"), param, ctx).ToTimedelta())
        except (ValueError, OverflowError):
            self.fail(f"'{text}' is before all times", param, ctx)


SHARE = ShareParameter()
DURATION = DurationParameter()
SPAN = DurationParameter(above_zero=True)
SIZE = SizeParameter()
RATIO = RatioParameter()
RANGE = RangeParameter()
ENTRY = EntryParameter()
SCOPE = EntryParameter(others=("teams", "regions"))
END = EndParameter()
UNTIL = UntilParameter()
POINT = PointParameter()
