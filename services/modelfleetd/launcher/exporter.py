"""Exports the spans of launches. They wait in the database, so that none is lost when a process dies; their ids are
made of what they are, so that one that is exported twice is the same span.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from modelfleetd.kit.telemetry import SpanEvent, Telemetry
from modelfleetd.launcher.store import Store

INTERVAL_SECONDS = 1.0
_DUTY = "export spans"
_BATCH = 500


class Exporter:
    """The duty, round by round."""

    def __init__(self, store: Store, telemetry: Telemetry, holder: str) -> None:
        self._store = store
        self._telemetry = telemetry
        self._holder = holder
        # Handed to the exporter and not forgotten yet: a round that was cut short does not send them again.
        self._sent: set[int] = set()

    async def export(self) -> None:
        """Exports what waits, and forgets it once it was sent."""
        if not await self._store.take_duty(_DUTY, self._holder, 10.0):
            return
        while spans := await self._store.spans(_BATCH):
            for number, span in spans:
                if number in self._sent:
                    continue
                self._sent.add(number)
                parent = span["parent_span_id"]
                self._telemetry.emit_span(
                    span["name"],
                    trace_id=int(span["trace_id"], 16),
                    span_id=int(span["span_id"], 16),
                    parent_span_id=None if parent is None else int(parent, 16),
                    start=datetime.fromisoformat(span["start"]),
                    end=datetime.fromisoformat(span["end"]),
                    attributes=span["attributes"],
                    events=[_event(event) for event in span["events"]],
                    links=[(int(trace, 16), int(other, 16)) for trace, other in span.get("links", ())],
                    error=span["error"],
                )
            await self._telemetry.flush()
            numbers = [number for number, _ in spans]
            await self._store.forget_spans(numbers)
            self._sent.difference_update(numbers)


def _event(told: Mapping[str, Any]) -> SpanEvent:
    """What happened, as an event of the span that it happened in; what is empty is left out."""
    attributes = {f"modelfleet.{key}": told[key] for key in ("message", "actor", "step", "region") if told[key]}
    return SpanEvent(told["name"], datetime.fromisoformat(told["time"]), attributes)
