"""What people see of a recording."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from typing import Any

import click
import numpy as np
from google.protobuf.message import DecodeError

from modelfleet import wording
from modelfleet.capacity.v1 import recordings_pb2 as pb
from modelfleet.cli import render
from modelfleet.inference.v2 import open_inference_pb2 as inference
from modelfleet.recordings import Dataset, NothingRecorded, Recorded, RecordingError
from modelfleet.recordings.layout import moment

_BAR = 40
# Upper ends in microseconds, and what they are called.
_DISTANCES = (
    (100, "< 0.1 ms"),
    (1_000, "< 1 ms"),
    (10_000, "< 10 ms"),
    (100_000, "< 100 ms"),
    (1_000_000, "< 1 s"),
    (1 << 62, "≥ 1 s"),
)

COLUMNS: list[render.Column] = [
    ("RECORDING", lambda m: render.short(m.name)),
    ("TYPE", lambda m: render.short(m.model_type)),
    ("BY", lambda m: f"agent of {render.short(m.region)}" if m.source == pb.Recording.TAP else "client"),
    ("STATE", lambda m: render.enum(m, "state")),
    ("REQUESTS", lambda m: f"{m.requests:,}"),
    ("SIZE", lambda m: wording.size(m.bytes)),
    ("CREATED", lambda m: render.clock(m.create_time)),
    ("EXPIRES", lambda m: render.day(m.expire_time)),
    ("MESSAGE", lambda m: m.message),
]
REQUEST_HEADERS = ["ARRIVAL", "BYTES", "MODEL", "ID", "INPUTS"]


def facts(found: pb.Recording) -> Iterator[str]:
    """A recording line by line, and what to do next."""
    state = render.enum(found, "state")
    yield f"{found.name}: {state}" + (f": {found.message}" if found.message else "")
    route = render.short(found.model_type)
    if found.source == pb.Recording.TAP:
        limits = [render.duration(found.max_duration), wording.size(found.max_bytes)]
        limits += [f"{found.max_requests:,} requests"] if found.max_requests else []
        yield f"  route     {route} in {render.short(found.region)}, {found.sample_permille:,} of 1,000 requests"
        yield f"  ends      after {' or '.join(limits)}"
    else:
        yield f"  route     {route}, recorded by a client"
    dropped = f", {found.dropped_requests:,} dropped" if found.dropped_requests else ""
    yield f"  recorded  {found.requests:,} requests, {wording.size(found.bytes)}{dropped}"
    if found.requests:
        yield f"  from      {render.clock(found.first_request_time)} to {render.clock(found.last_request_time)} UTC"
    yield f"  dataset   {found.uri}"
    if found.digest:
        yield f"  digest    {found.digest}"
    yield f"  kept      until {render.clock(found.expire_time)} UTC"
    yield f"  asked by  {found.actor}"
    short = render.short(found.name)
    if found.state == pb.Recording.READY:
        yield f"look at it: modelfleet capacity recording head {short}"
        region = render.short(found.region) or "REGION"
        yield f"replay it:  modelfleet capacity loadtest create {route}/MODEL --region {region} --recording {short}"
    elif found.state != pb.Recording.FAILED:
        yield f"end it: modelfleet capacity recording stop {short}"


def progress(found: pb.Recording, now: datetime) -> str:
    """How far it is, on one line."""
    state = f"{render.enum(found, 'state')}  {found.requests:,} requests, {wording.size(found.bytes)}"
    if found.state in (pb.Recording.READY, pb.Recording.FAILED):
        return state
    left = found.create_time.ToDatetime(tzinfo=UTC) + found.max_duration.ToTimedelta() - now
    ends = f", at most {render.seconds(left.total_seconds())} more" if left.total_seconds() > 0 else ""
    return f"{state}{ends}"


@dataclass(frozen=True, slots=True)
class Looked:
    """The first requests of a dataset, and sizes and distances of more of them."""

    shown: Sequence[Recorded]
    sizes: np.ndarray[Any, np.dtype[np.int64]]
    arrivals: np.ndarray[Any, np.dtype[np.int64]]

    @property
    def distances(self) -> list[tuple[str, int]]:
        """How many requests came how soon after the one before them."""
        ends = [end for end, _ in _DISTANCES]
        counts = np.bincount(np.searchsorted(ends, np.diff(self.arrivals), side="right"), minlength=len(ends))
        return [(label, int(count)) for (_, label), count in zip(_DISTANCES, counts, strict=True)]

    def lines(self) -> Iterator[str]:
        """What is said beneath the requests."""
        if not len(self.sizes):
            return
        p50, p99 = (int(np.percentile(self.sizes, q, method="higher")) for q in (50, 99))
        yield (
            f"first {len(self.sizes):,} requests: {p50:,} bytes (median), {p99:,} (99th percentile), "
            f"{int(self.sizes.max()):,} (most)"
        )
        span = int(self.arrivals[-1] - self.arrivals[0])
        if span <= 0:
            return
        rate = (len(self.arrivals) - 1) * 1e6 / span
        yield f"recorded at {rate:,.1f}/s over {render.seconds(span / 1e6)}; distances:"
        most = max(count for _, count in self.distances)
        for label, count in self.distances:
            bar = "█" * round(_BAR * count / most) or ("▏" if count else "")
            yield f"  {label:>8} {count:>9,} {bar}".rstrip()

    def as_data(self) -> dict[str, Any]:
        """The same for programs."""
        return {
            "requests": [
                {
                    "arrival_time": moment(row.arrival_us).isoformat().replace("+00:00", "Z"),
                    "method": row.method,
                    "bytes": len(row.request),
                    **({} if (parsed := _parsed(row.request)) is None else {"request": render.as_data(parsed)}),
                }
                for row in self.shown
            ],
            "requests_looked_at": len(self.sizes),
            "bytes": int(self.sizes.sum()),
            "distances": dict(self.distances),
        }


def look(uri: str, shown: int, over: int, going_on: str = "") -> Looked:
    """Reads the first requests of a dataset; keeps only those that are shown.

    Args:
        uri: where it is.
        shown: how many requests are kept.
        over: how many are read.
        going_on: the state of its recording where that has not ended: nothing may be written yet.
    """
    kept: list[Recorded] = []
    sizes: list[int] = []
    arrivals: list[int] = []
    try:
        with render.busy(f"reading {uri}"):
            for row in islice(Dataset.open(uri), over):
                if len(kept) < shown:
                    kept.append(row)
                sizes.append(len(row.request))
                arrivals.append(row.arrival_us)
    except NothingRecorded as error:
        raise click.ClickException(f"nothing is written yet; it is {going_on}" if going_on else str(error)) from None
    except RecordingError as error:
        raise click.ClickException(str(error)) from None
    return Looked(kept, np.array(sizes, np.int64), np.array(arrivals, np.int64))


def request_row(row: Recorded) -> list[str]:
    """One request in a table."""
    parsed = _parsed(row.request)
    arrival = moment(row.arrival_us).strftime("%H:%M:%S.%f")
    if parsed is None:
        return [arrival, f"{len(row.request):,}", "", "", f"not a ModelInferRequest ({row.method or 'no method'})"]
    return [arrival, f"{len(row.request):,}", parsed.model_name, parsed.id, ", ".join(map(_input, parsed.inputs))]


def _input(tensor: inference.ModelInferRequest.InferInputTensor) -> str:
    return f"{tensor.name}:{tensor.datatype}[{','.join(map(str, tensor.shape))}]"


def _parsed(request: bytes) -> inference.ModelInferRequest | None:
    try:
        parsed = inference.ModelInferRequest.FromString(request)
    except DecodeError:
        return None
    return parsed if parsed.model_name or parsed.inputs else None
