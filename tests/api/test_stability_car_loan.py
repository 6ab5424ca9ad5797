"""The car loans as predictions and late labels: ranges from the reference, the analysis judged by them."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from google.protobuf.duration_pb2 import Duration

from modelfleet.cli import main
from modelfleet.common.v1.serving_pb2 import ModelShare, RegionSplit, ServingSpec
from modelfleet.registry.v1 import monitoring_pb2, registry_pb2
from tests.support import car_loan
from tests.support.front_door import door
from tests.support.stability import StabilityFleet, stability_fleet

LOANS, MODEL, REPAID = "modelTypes/loans", "modelTypes/loans/models/m", "repaid"
# A chunk takes six hours, and labels half of it: whatever is written late is still in time.
CHUNK = timedelta(hours=6)
STEPS = 2  # in which a chunk is written: in one, labels would be sent when they count no more
LABELS_WITHIN = timedelta(minutes=170)
_PATIENT = 60.0
CALIBRATION, NE = monitoring_pb2.HealthyRange.CALIBRATION, monitoring_pb2.HealthyRange.NE


_LABELS = np.dtype([("id", "V16"), ("time", np.int64), ("label", np.int8)])
_OF: Any = {"model_type": LOANS, "model": MODEL, "prediction": REPAID}


class Producer:
    """Predicts chunk after chunk, and sends labels when they have come to be."""

    def __init__(self, fleet: StabilityFleet, start: datetime) -> None:
        self._fleet = fleet
        self._end = int(start.timestamp() * 1e6)
        self._rng = np.random.default_rng(1)
        self._waiting = np.empty(0, dtype=_LABELS)

    async def remember(self, loans: car_loan.Loans, start: datetime) -> None:
        """Writes what is known already, as examples with their labels."""
        width = int(CHUNK.total_seconds() * 1e6)
        first = int(start.timestamp() * 1e6)
        for number, chunk in enumerate(loans.chunks()):
            event = first + number * width + np.arange(len(chunk.score), dtype=np.int64) * width // len(chunk.score)
            examples = self._fleet.examples(
                [], [], score=chunk.score, label=chunk.label.astype(np.int8), event_time=event, **_OF
            )
            answer = await self._fleet.client.stability.write_examples(examples, timeout=_PATIENT)
            assert answer.accepted_rows == len(chunk.score)

    async def produce(self, chunk: car_loan.Loans) -> None:
        """Has a chunk's time pass; writes its predictions as they are made, and labels as they come to be."""
        count, width = len(chunk.score), int(CHUNK.total_seconds() * 1e6)
        event = self._end + np.arange(count, dtype=np.int64) * width // count
        came = event + self._rng.integers(0, int(LABELS_WITHIN.total_seconds() * 1e6), count)
        for part in np.array_split(np.arange(count), STEPS):
            self._end += width // STEPS
            jump(self._fleet, self._end / 1e6 - self._fleet.clock.now().timestamp() + 1.0)
            ids = self._rng.integers(0, 256, (len(part), 16), dtype=np.uint8)
            given = {"request_id": ids, "score": chunk.score[part], "event_time": event[part]}
            predictions = self._fleet.predictions([], [], **given, **_OF)
            answer = await self._fleet.client.stability.write_predictions(predictions, timeout=_PATIENT)
            assert answer.accepted_rows == len(part)
            made = [ids.view("V16")[:, 0], came[part], chunk.label[part].astype(np.int8)]
            await self._send(np.concatenate([self._waiting, np.rec.fromarrays(made, dtype=_LABELS)]))

    async def _send(self, labels: npt.NDArray[np.void]) -> None:
        has_come = labels["time"] <= self._end
        self._waiting, sent = labels[~has_come], labels[has_come]
        given = {"request_id": sent["id"].copy(), "label_time": sent["time"].copy(), "label": sent["label"].copy()}
        answer = await self._fleet.client.stability.write_labels(
            self._fleet.labels([], **given, **_OF), timeout=_PATIENT
        )
        assert answer.accepted_rows == len(sent)


def jump(fleet: StabilityFleet, seconds: float) -> None:
    """Has time pass at once: nobody is to act in each of its minutes."""
    fleet.clock.set(fleet.clock.monotonic() + seconds)


async def test_the_last_five_chunks_leave_the_accepted_range_of_calibration_and_none_leaves_that_of_ne(
    database_url: str, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    async with stability_fleet(database_url) as fleet:
        await serve(fleet)
        start = fleet.clock.now().replace(minute=0, second=0)
        producer = Producer(fleet, start)
        analysis = car_loan.analysis().chunks()
        await producer.remember(car_loan.reference(), start - 10 * CHUNK)
        addresses = {"registry": fleet.registry.address, "stability": fleet.stability.address}
        async with door(tmp_path_factory.mktemp("door"), addresses) as address:
            span = ("--from", f"{start - 10 * CHUNK:%Y-%m-%dT%H:%MZ}", "--to", f"{start:%Y-%m-%dT%H:%MZ}")
            why = (
                "--reason",
                "the reference period",
                "--window",
                "6h",
                "--yes",
                "--address",
                address,
                "--timeout",
                "60",
            )
            status = await asyncio.to_thread(main, ["stability", "ranges", "accept", "loans/m", *span, *why])
            assert status == 0, capsys.readouterr().err
        ranges = {
            range_.metric: range_ for range_ in (await fleet.client.registry.get_model(name=MODEL)).healthy_ranges
        }
        assert ranges[CALIBRATION].residuals == 720
        assert 0.96 < ranges[CALIBRATION].low < 0.98 and 1.015 < ranges[CALIBRATION].high < 1.0257

        for chunk in analysis:
            await producer.produce(chunk)
        # Until the last labels have come, and can come no more.
        await producer.produce(car_loan.reference().chunks()[0])
        jump(fleet, 2 * CHUNK.total_seconds())
        # Their values are compared, not what the evaluation says: a chunk has so few rows that the interval of its
        # value is wider than what it is wrong by, so to the evaluation the faulty ones are UNKNOWN.
        outside: dict[monitoring_pb2.HealthyRange.Metric.ValueType, list[bool]] = {CALIBRATION: [], NE: []}
        values = []
        for number in range(len(analysis)):
            answer = await fleet.client.stability.query_series(
                model=MODEL,
                prediction=REPAID,
                start_time=start + number * CHUNK,
                end_time=start + (number + 1) * CHUNK,
                resolution=Duration(seconds=3600),
                timeout=_PATIENT,
            )
            assert (answer.total.examples, answer.total.matured_share) == (car_loan.CHUNK, 1.0)
            values.append(round(answer.total.calibration.value, 3))
            for metric, estimate in ((CALIBRATION, answer.total.calibration), (NE, answer.total.ne)):
                outside[metric].append(not ranges[metric].low <= estimate.value <= ranges[metric].high)
        assert tuple(values[5:]) == car_loan.FAULTY_CALIBRATIONS
        assert outside == {CALIBRATION: [False] * 5 + [True] * 5, NE: [False] * 10}


async def serve(fleet: StabilityFleet) -> None:
    """Registers the model and has it serve."""
    registry = fleet.client.registry
    prediction = registry_pb2.Prediction(
        id=REPAID,
        attribution_window=Duration(seconds=int(CHUNK.total_seconds())),
    )
    type_ = registry_pb2.ModelType(team="teams/feed", regions=["regions/eu"], predictions=[prediction])
    await registry.create_model_type(model_type_id="loans", model_type=type_)
    spec = ServingSpec(command=["serve"], flavor="flavors/cpu", units_per_replica=1)
    # As an experiment it has two ranges to share its false alarms; a baseline's volume would be a third.
    roles = {"m": registry_pb2.Model.EXPERIMENT, "baseline": registry_pb2.Model.BASELINE}
    changes = [registry_pb2.RoleChange(model=f"{LOANS}/models/{name}", role=role) for name, role in roles.items()]
    for model in roles:
        await registry.create_model(parent=LOANS, model_id=model, model=registry_pb2.Model(serving_spec=spec))
    shares = [ModelShare(model=f"{LOANS}/models/{model}", share_basis_points=5_000) for model in roles]
    await registry.adopt_serving(
        model_type=LOANS,
        role_changes=changes,
        splits=[RegionSplit(region="regions/eu", shares=shares)],
    )
