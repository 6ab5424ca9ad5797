"""What people do to launches of a running system, whoever dies meanwhile: each call is made again and again, with one
request_id, until it is answered.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TypeVar

from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask

from modelfleet import AsyncClient
from modelfleet.capacity.v1 import capacity_pb2
from modelfleet.errors import Cancelled, DeadlineExceeded, Unavailable
from modelfleet.launcher.v1 import freeze_pb2, holds_pb2
from modelfleet.launcher.v1 import launcher_pb2 as pb
from tests.support.wait import until
from tests.support.whole import FLAVOR, OLD, POOL, REGION, TYPE, Whole

# Who may approve what others have asked for.
APPROVER = "carol"
_T = TypeVar("_T")
_AWAY = (Unavailable, DeadlineExceeded, Cancelled)
ENDED = {pb.Launch.SUCCEEDED, pb.Launch.ROLLED_BACK, pb.Launch.CANCELLED, pb.Launch.FAILED}
# A launch that has to wait for leases, for the database and for processes that begin again.
ENDS_WITHIN = 90.0


@dataclass(kw_only=True)
class People:
    """Those who launch one model after another on the only route of a running system.

    Attributes:
        everything: the system.
        serving: the model that is the baseline.
    """

    everything: Whole
    serving: str = OLD
    _launches: int = 0
    _others: int = 0

    async def start(
        self,
        candidate: str,
        *,
        bake: float,
        policy: pb.LaunchPolicy | None = None,
        queue: bool = False,
        strategy: pb.Launch.Strategy.ValueType = pb.Launch.REPLACE_BASELINE,
        share: int = 0,
    ) -> str:
        """Creates a launch in steps of half of the traffic, again and again with one request_id until it is taken.

        Args:
            candidate: that is to take over, to have a share, or to have none any more.
            bake: seconds.
            policy: of its gates; None: none but that of availability.
            queue: whether it waits for the launch before it.
            strategy: what becomes of the candidate.
            share: of an experiment, in basis points.
        """
        self._launches += 1
        made = policy or ungated()
        made.max_step_basis_points, made.max_steps = 5_000, 2
        made.bake_duration.FromTimedelta(timedelta(seconds=bake))
        made.rollback_window.FromTimedelta(timedelta(0))
        made.step_deadline.FromTimedelta(timedelta(minutes=2))
        launch = pb.Launch(
            model_type=TYPE,
            candidate=candidate,
            strategy=strategy,
            target_share_basis_points=share,
            pool=POOL,
            policy=made,
        )
        name = f"l{self._launches}"
        request = pb.CreateLaunchRequest(launch_id=name, launch=launch, queue=queue, request_id=str(uuid.uuid4()))
        await surely(lambda: self.everything.client.launcher.create_launch(request, timeout=5))
        return f"launches/{name}"

    async def succeeds(
        self,
        candidate: str,
        *,
        strategy: pb.Launch.Strategy.ValueType = pb.Launch.REPLACE_BASELINE,
        share: int = 0,
    ) -> pb.Launch:
        """Has a launch without a bake go through, before or after what is looked at."""
        launch = await self.ended(await self.start(candidate, bake=0, strategy=strategy, share=share))
        assert launch.state == pb.Launch.SUCCEEDED, launch.summary
        return launch

    async def find(self, name: str) -> pb.Launch | None:
        """The launch; None where nobody answers just now."""
        with contextlib.suppress(*_AWAY):
            return await self.everything.client.launcher.get_launch(name=name, timeout=2)
        return None

    async def ended(self, name: str) -> pb.Launch:
        """Waits for a launch's end, whoever dies meanwhile."""
        return await self.everything.ended(name, timeout=ENDS_WITHIN)

    async def abort(self, name: str) -> None:
        """Aborts, again and again with one request_id until that is taken; so do the other verbs."""
        request = pb.AbortLaunchRequest(name=name, reason="for a test", request_id=str(uuid.uuid4()))
        await surely(lambda: self.everything.client.launcher.abort_launch(request, timeout=5))

    async def pause_and_resume(self, name: str) -> None:
        """Pauses a launch, and lets it go on."""
        launcher = self.everything.client.launcher
        pause = pb.PauseLaunchRequest(name=name, reason="for a test", request_id=str(uuid.uuid4()))
        await surely(lambda: launcher.pause_launch(pause, timeout=5))
        resume = pb.ResumeLaunchRequest(name=name, request_id=str(uuid.uuid4()))
        await surely(lambda: launcher.resume_launch(resume, timeout=5))

    async def skip(self, name: str, step: int) -> None:
        """Ends a step's bake, once that has begun."""
        await self.bakes(name, step)
        request = pb.SkipLaunchStepRequest(
            name=name, expected_step=step, reason="for a test", request_id=str(uuid.uuid4())
        )
        await surely(lambda: self.everything.client.launcher.skip_launch_step(request, timeout=5))

    async def approve(self, name: str) -> None:
        """Somebody else approves a launch, once it waits for that."""
        found = await self.awaits_approval(name)
        request = pb.ApproveLaunchRequest(
            name=name, envelope_digest=found.envelope.digest, request_id=str(uuid.uuid4())
        )
        async with AsyncClient(self.everything.system.address, principal=APPROVER) as client:
            await surely(lambda: client.launcher.approve_launch(request, timeout=5))

    async def reject(self, name: str) -> None:
        """Somebody else rejects a launch, once it waits for being approved."""
        await self.awaits_approval(name)
        request = pb.RejectLaunchRequest(name=name, reason="for a test", request_id=str(uuid.uuid4()))
        async with AsyncClient(self.everything.system.address, principal=APPROVER) as client:
            await surely(lambda: client.launcher.reject_launch(request, timeout=5))

    async def promote(self, name: str) -> None:
        """Ends all bakes of a launch, once the first has begun."""
        await self.bakes(name, 1)
        request = pb.PromoteLaunchRequest(name=name, reason="for a test", request_id=str(uuid.uuid4()))
        await surely(lambda: self.everything.client.launcher.promote_launch(request, timeout=5))

    async def retry(self, name: str) -> None:
        """Has a launch that went back begin once more."""
        request = pb.RetryLaunchRequest(name=name, reason="for a test", request_id=str(uuid.uuid4()))
        await surely(lambda: self.everything.client.launcher.retry_launch(request, timeout=5))

    async def roll_back(self, name: str) -> str:
        """Takes back a launch that has succeeded; gives the launch that does."""
        self._launches += 1
        request = pb.RollBackLaunchRequest(
            name=name, reason="for a test", launch_id=f"l{self._launches}", request_id=str(uuid.uuid4())
        )
        await surely(lambda: self.everything.client.launcher.roll_back_launch(request, timeout=5))
        return f"launches/{request.launch_id}"

    async def end_experiments(self) -> None:
        """Ends whatever has a share beside the baseline."""
        found = await surely(lambda: self.everything.client.registry.get_model_type(name=TYPE, timeout=5))
        for share in found.splits[0].shares if found.splits else ():
            if share.model != found.baseline and share.share_basis_points:
                await self.succeeds(share.model, strategy=pb.Launch.END_EXPERIMENT)

    async def last_replacement(self) -> pb.Launch | None:
        """The launch that has put what serves in the place of another model; None where nothing served before it."""
        launcher = self.everything.client.launcher
        found = await surely(lambda: launcher.list_launches(model_type=TYPE, page_size=100, timeout=5))
        for launch in found.launches:
            if launch.state == pb.Launch.SUCCEEDED and launch.candidate == self.serving and launch.baseline:
                return launch if launch.strategy == pb.Launch.REPLACE_BASELINE else None
        return None

    async def hold(self, model: str) -> str:
        """Puts a model on hold; gives the hold's name."""
        self._others += 1
        request = holds_pb2.CreateHoldRequest(
            hold_id=f"h{self._others}",
            hold=holds_pb2.Hold(model=model, reason="for a test"),
            request_id=str(uuid.uuid4()),
        )
        await surely(lambda: self.everything.client.launcher.create_hold(request, timeout=5))
        return f"holds/{request.hold_id}"

    async def lift_holds(self) -> int:
        """Lifts every hold; gives how many there were."""
        launcher = self.everything.client.launcher
        found = (await surely(lambda: launcher.list_holds(timeout=5))).holds
        for hold in found:
            request = holds_pb2.LiftHoldRequest(name=hold.name, reason="for a test", request_id=str(uuid.uuid4()))
            await surely(partial(launcher.lift_hold, request, timeout=5))
        return len(found)

    async def freeze(self) -> str:
        """Makes a freeze window that is open, after one that was to be opened tomorrow; gives its name."""
        self._others += 1
        launcher, now = self.everything.client.launcher, datetime.now(UTC)
        window = freeze_pb2.FreezeWindow(reason="for a test", time_zone="UTC", teams=["teams/ours"])
        window.start = f"{now + timedelta(days=1):%Y-%m-%dT%H:%M:%S}"
        window.duration.FromTimedelta(timedelta(hours=3))
        made = freeze_pb2.CreateFreezeWindowRequest(
            freeze_window_id=f"f{self._others}", freeze_window=window, request_id=str(uuid.uuid4())
        )
        await surely(lambda: launcher.create_freeze_window(made, timeout=5))
        window.name = f"freezeWindows/{made.freeze_window_id}"
        window.start = f"{now - timedelta(hours=1):%Y-%m-%dT%H:%M:%S}"
        opened = freeze_pb2.UpdateFreezeWindowRequest(
            freeze_window=window, update_mask=FieldMask(paths=["start"]), request_id=str(uuid.uuid4())
        )
        await surely(lambda: launcher.update_freeze_window(opened, timeout=5))
        return window.name

    async def override(self, name: str, window: str) -> None:
        """Has a launch go on in spite of a freeze window."""
        request = pb.OverrideLaunchFreezeRequest(
            name=name, freeze_window=window, reason="for a test", request_id=str(uuid.uuid4())
        )
        await surely(lambda: self.everything.client.launcher.override_launch_freeze(request, timeout=5))

    async def thaw(self) -> int:
        """Removes every freeze window; gives how many there were."""
        launcher = self.everything.client.launcher
        found = (await surely(lambda: launcher.list_freeze_windows(timeout=5))).freeze_windows
        for window in found:
            request = freeze_pb2.DeleteFreezeWindowRequest(name=window.name, request_id=str(uuid.uuid4()))
            await surely(partial(launcher.delete_freeze_window, request, timeout=5))
        return len(found)

    async def bakes(self, name: str, step: int) -> None:
        """Waits until a launch bakes in a step."""
        await self.reaches(name, lambda launch: any(_bakes(region, step) for region in launch.progress))

    async def awaits_approval(self, name: str) -> pb.Launch:
        """Waits until a launch waits for people."""
        return await self.reaches(name, lambda launch: launch.state == pb.Launch.AWAITING_APPROVAL)

    async def reaches(self, name: str, is_there: Callable[[pb.Launch], bool]) -> pb.Launch:
        """Waits until a launch is somewhere, whoever dies meanwhile."""

        async def there() -> pb.Launch | None:
            found = await self.find(name)
            return found if found is not None and is_there(found) else None

        launch: pb.Launch = await until(there, timeout=ENDS_WITHIN)
        return launch

    @asynccontextmanager
    async def crowded(self) -> AsyncIterator[Callable[[], Awaitable[None]]]:
        """Somebody else has all that is free. Gives what ends that; at the end of the block it is over anyway."""
        capacity = self.everything.client.capacity
        (usage,) = (await capacity.get_pool(name=POOL, timeout=30)).usages
        self._others += 1
        wanted = capacity_pb2.Reservation(pool=POOL, launch=f"launches/other-{self._others}")
        wanted.items.add(flavor=FLAVOR, region=REGION, hold_units=usage.available_units, end_units=0)
        # Whoever waits is told until when.
        wanted.expected_release_time.FromDatetime(datetime.now(UTC) + timedelta(hours=1))
        made = await capacity.create_reservation(reservation=wanted, time_to_live=Duration(seconds=1800))
        is_there = True

        async def leave() -> None:
            nonlocal is_there
            if is_there:
                request = capacity_pb2.CancelReservationRequest(name=made.name, request_id=str(uuid.uuid4()))
                await surely(lambda: capacity.cancel_reservation(request, timeout=5))
            is_there = False

        try:
            yield leave
        finally:
            await leave()


def _bakes(region: pb.RegionProgress, step: int) -> bool:
    return region.step == step and region.HasField("bake_end_time")


def ungated() -> pb.LaunchPolicy:
    """A policy by which nobody is asked but the platform."""
    policy = pb.LaunchPolicy()
    policy.stability_gate.disabled = True
    policy.evidence_gate.disabled = True
    return policy


def dry_run() -> pb.LaunchPolicy:
    """A policy by which everybody is asked: the platform counts, the others have nothing to go by."""
    policy = pb.LaunchPolicy()
    policy.stability_gate.dry_run = True
    policy.evidence_gate.dry_run = True
    policy.availability_gate.min_requests = 5
    return policy


async def surely(call: Callable[[], Awaitable[_T]]) -> _T:
    """Makes a call again and again, the same each time, until it is answered; gives the answer."""
    answers: list[_T] = []

    async def answered() -> bool:
        with contextlib.suppress(*_AWAY):
            answers.append(await call())
        return bool(answers)

    await until(answered, timeout=ENDS_WITHIN)
    return answers[0]
