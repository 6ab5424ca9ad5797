"""Builders of what the services say of routes: short names for what tests of investigation and triage often say."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console

from modelfleet.cli.investigate import screen
from modelfleet.common.v1 import serving_pb2
from modelfleet.incidents import Route
from modelfleet.investigate import Investigation
from modelfleet.launcher.v1 import launcher_pb2
from modelfleet.registry.v1 import registry_pb2 as pb
from modelfleet.stability.v1 import stability_pb2

NOW = datetime(2026, 3, 1, 3, 0, tzinfo=UTC)
CTR = "modelTypes/ctr"
OLD, NEW = f"{CTR}/models/old", f"{CTR}/models/new"


def stamp(**before_now: float) -> Timestamp:
    """A moment before NOW: `stamp(minutes=5)`."""
    made = Timestamp()
    made.FromDatetime(NOW - timedelta(**before_now))
    return made


def split(region: str = "eu", of: str = CTR, **shares: int) -> serving_pb2.RegionSplit:
    """The ledger's split of a region, by the ids of models."""
    parts = [
        serving_pb2.ModelShare(model=f"{of}/models/{key}", share_basis_points=part) for key, part in shares.items()
    ]
    return serving_pb2.RegionSplit(region=f"regions/{region}", shares=parts)


def model_type(name: str = CTR, **fields: Any) -> pb.ModelType:
    """A model type whose baseline `old` has all of the traffic in one region."""
    given: dict[str, Any] = {
        "team": "teams/feed",
        "baseline": f"{name}/models/old",
        "splits": [split(of=name, old=10_000)],
        "update_time": stamp(days=1),
    }
    return pb.ModelType(name=name, **(given | fields))


def serving(model: str = OLD, **fields: Any) -> pb.ModelServing:
    """A healthy model with all of the traffic."""
    given: dict[str, Any] = {
        "available_replicas": 10,
        "total_replicas": 10,
        "share_basis_points": 10_000,
        "requests": 100_000,
    }
    return pb.ModelServing(model=model, **(given | fields))


def status(*models: pb.ModelServing, region: str = "eu", of: str = CTR, minutes: float = 1) -> pb.ServingStatus:
    """A report of a region, so many minutes old."""
    shown = models or (serving(f"{of}/models/old"),)
    return pb.ServingStatus(
        model_type=of, region=f"regions/{region}", models=shown, observe_time=stamp(minutes=minutes)
    )


def launch(state: launcher_pb2.Launch.State.ValueType, **fields: Any) -> launcher_pb2.Launch:
    """A launch that makes `new` the baseline."""
    given: dict[str, Any] = {"name": "launches/l1", "model_type": CTR, "candidate": NEW, "baseline": OLD}
    strategy = fields.pop("strategy", launcher_pb2.Launch.REPLACE_BASELINE)
    return launcher_pb2.Launch(state=state, strategy=strategy, **(given | fields))


def judgement(verdict: serving_pb2.Verdict.ValueType, explanation: str = "click: it says so.") -> Any:
    """What stability found of one prediction."""
    finding = stability_pb2.Finding(
        prediction="click", metric=stability_pb2.Finding.CALIBRATION, verdict=verdict, explanation=explanation
    )
    return stability_pb2.Judgement(verdict=verdict, findings=[finding])


def standing(state: Any, available: Any = stability_pb2.Availability.AVAILABLE, model: str = OLD) -> Any:
    """What the newest evaluation said of a model."""
    availability = stability_pb2.Availability(state=available, success_share=0.9, requests=1_000)
    return stability_pb2.ModelStability(
        model=model, state=state, explanation="click: it says so.", since=stamp(minutes=20), availability=availability
    )


def route(given: pb.ModelType | None = None, *statuses: pb.ServingStatus, **fields: Any) -> Route:
    """A route, healthy unless told otherwise."""
    known = given or model_type()
    reports = statuses or (status(of=known.name),)
    return Route(known, **({"statuses": reports} | fields))


def shown(found: Investigation, width: int = 100) -> list[str]:
    """The screen as a terminal of that width shows it."""
    console = Console(width=width, highlight=False, force_terminal=False)
    with console.capture() as capture:
        for part in screen(found):
            console.print(part)
    return [line.rstrip() for line in capture.get().splitlines()]
