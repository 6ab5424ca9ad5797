"""A recording of the simulator: requests made up at the rate of the target, written as a real dataset at its end."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from modelfleet.inference.v2 import open_inference_pb2 as inference
from modelfleet.recordings import DatasetWriter, RecordingError
from modelfleet.recordings.layout import microseconds, moment
from modelfleetd import names
from modelfleetd.platform.model import RecordingPlan, RecordingStatus
from modelfleetd.platform.rules import PERMILLE

_METHOD = "/inference.GRPCInferenceService/ModelInfer"


@dataclass(slots=True)
class SimulatedRecording:
    """One recording. No time of its own: it is told what passes."""

    plan: RecordingPlan
    begun_us: int
    active: bool = True
    failed: bool = False
    message: str = ""
    requests: int = 0
    seconds_between: float = 0.0
    fraction: float = 0.0

    def pass_time(self, now: datetime, seconds: float, requests_per_second: float) -> None:
        """Records the traffic of an interval, until a limit is reached."""
        if not self.active:
            return
        sampled = requests_per_second * self.plan.sample_permille / PERMILLE
        exact = sampled * seconds + self.fraction
        self.fraction = exact - int(exact)
        self.requests += int(exact)
        self.seconds_between = 1 / sampled if sampled else 0.0
        fit = -(-self.plan.max_bytes // len(self._request(0)))
        most = min(fit, self.plan.max_requests or fit)
        if self.requests >= most:
            self.requests = most
            self.end(f"{most:,} requests are recorded.")
        elif now >= self.plan.end_time:
            self.end("Its time is over.")

    def end(self, why: str) -> None:
        """Ends it and writes what was recorded; nothing where it has ended."""
        if not self.active:
            return
        self.active, self.message = False, why
        try:
            writer = DatasetWriter(self.plan.uri, self._model_type)
            for number in range(self.requests):
                writer.write(self._request(number), self._arrival_us(number), _METHOD)
            writer.complete()
        except RecordingError as error:
            self.failed, self.message, self.requests = True, f"{error}.", 0

    def status(self) -> RecordingStatus:
        """How far it is."""
        return RecordingStatus(
            recording=self.plan.recording,
            active=self.active,
            requests=self.requests,
            bytes=self.requests * len(self._request(0)),
            first_request_time=moment(self._arrival_us(0)) if self.requests else None,
            last_request_time=moment(self._arrival_us(self.requests - 1)) if self.requests else None,
            message=self.message,
            failed=self.failed,
        )

    @property
    def _model_type(self) -> str:
        return names.TARGET.parse(self.plan.target)[0]

    def _arrival_us(self, number: int) -> int:
        return self.begun_us + round(number * self.seconds_between * 1e6)

    def _request(self, number: int) -> bytes:
        return inference.ModelInferRequest(model_name=self._model_type, id=f"{number:08d}").SerializeToString()


def begin(plan: RecordingPlan, now: datetime) -> SimulatedRecording:
    """A recording that begins now."""
    return SimulatedRecording(plan, microseconds(now))
