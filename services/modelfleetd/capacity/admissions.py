"""Reservations that are asked for: decided one after the other on locked rows, and committed together.

Those that come for a pool while others are being committed are committed together, next. Each is decided on what the
ones before it leave, as if it had come alone, and is refused alone. How many can wait for their turn is what the
server's limit of calls lets in.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from modelfleet.capacity.v1 import capacity_pb2 as pb
from modelfleetd.capacity import holds, lines
from modelfleetd.capacity.domain.reservation import Asked, Reservation, State, entries_of_hold
from modelfleetd.capacity.domain.waiting import MAX_WAITING, NEWEST, reservation_of
from modelfleetd.capacity.store import balances, reservations, usage
from modelfleetd.capacity.store.balances import Cause
from modelfleetd.capacity.store.reservations import Live
from modelfleetd.capacity.wire import reservations as wire
from modelfleetd.errors import FleetError, LaunchEnded, Overloaded, QuotaExceeded, ResourceExists
from modelfleetd.kit.db import Collision, Connection, Database
from modelfleetd.kit.idempotency import Answered, again, answer_of, known, remember
from modelfleetd.kit.turns import Turns

_MOST_TOGETHER = 64


@dataclass(eq=False, slots=True, kw_only=True)
class Arrival:
    """One call that asks for a reservation, and what became of it."""

    request: pb.CreateReservationRequest
    name: str
    asked: Asked
    time_to_live: timedelta
    may_wait: bool
    actor: str
    answer: pb.Reservation | None = None
    refusal: Exception | None = None


class Admissions:
    """Makes reservations."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._pools: dict[str, Turns[Arrival]] = {}

    async def reserve(self, arrival: Arrival) -> pb.Reservation:
        """Reserves, once for the request_id.

        Raises:
            QuotaExceeded: it does not fit, and may not wait, or nothing that is held would ever free enough.
            EndStateExceedsQuota: its end state is beyond the pool's own quota and loans.
            ResourceExists: the launch has a live reservation.
            ReferenceNotFound: the pool or a flavor does not exist.
            Overloaded: too many wait in the organisation.
        """
        pool = arrival.asked.pool
        turns = self._pools.setdefault(pool, Turns(self._admit, _MOST_TOGETHER))
        try:
            await turns.do(arrival)
        finally:
            if turns.idle and self._pools.get(pool) is turns:
                del self._pools[pool]
        if isinstance(arrival.refusal, QuotaExceeded):
            # With nothing locked any more.
            raise QuotaExceeded(await usage.explained(self._database, arrival.refusal.quota))
        if arrival.refusal is not None:
            raise arrival.refusal
        assert arrival.answer is not None
        return arrival.answer

    async def _admit(self, arrivals: Sequence[Arrival]) -> None:
        """Decides on arrivals at one pool and commits all that were not refused: one transaction."""
        for arrival in arrivals:
            if arrival.asked.takes_over:
                await self._take_over(arrival)
        arrivals = [arrival for arrival in arrivals if arrival.answer is None and arrival.refusal is None]
        if not arrivals:
            return

        async def work(conn: Connection) -> None:
            await _Batch(conn, arrivals).commit()

        await self._database.run(work)

    async def _take_over(self, arrival: Arrival) -> None:
        """Holds one with what another one kept for a rollback; where that does not do, it is not handed over."""

        async def work(conn: Connection) -> None:
            await holds.hand_over(conn, arrival.asked, arrival.actor)
            await _Batch(conn, [arrival]).commit()
            if arrival.answer is None or arrival.answer.state != pb.Reservation.HELD:
                raise _NotHeld

        try:
            await self._database.run(work)
        except _NotHeld:
            arrival.answer = arrival.refusal = None
        except FleetError as error:
            arrival.refusal = error


class _NotHeld(Exception):
    """Nothing is handed over to one that is not held."""


class _Batch:
    """Arrivals at one pool in one transaction."""

    def __init__(self, conn: Connection, arrivals: Sequence[Arrival]) -> None:
        self._conn = conn
        self._arrivals = arrivals
        self._made: list[Reservation] = []
        self._actors: list[str] = []
        self._answers: list[Answered] = []

    async def commit(self) -> None:
        """Decides, and writes what was decided. Raises Collision where it has to be decided anew."""
        conn, arrivals = self._conn, self._arrivals
        asked = [arrival.asked for arrival in arrivals]
        wait = any(arrival.may_wait for arrival in arrivals)
        view = await lines.view(conn, asked[0].pool, asked, lock=True, wait=wait)
        # With the rows locked: what others were answered for this pool is there, and nobody is being answered.
        before = await known(conn, [arrival.request.request_id for arrival in arrivals])
        live = await reservations.live(conn, [one.launch for one in asked])
        for number, arrival in enumerate(arrivals):
            arrival.answer = arrival.refusal = None
            try:
                key = arrival.request.request_id
                arrival.answer = again(arrival.request, pb.Reservation, before.get(key))
                if arrival.answer is None:
                    made = _decide(view, arrival, NEWEST + number, live)
                    arrival.answer = wire.reservation_to_proto(made)
                    before[key] = answer_of(arrival.request, arrival.answer)
                    self._answers.append(before[key])
                    self._made.append(made)
                    self._actors.append(arrival.actor)
                    live.reservations[made.launch, made.attempt] = made.name
                    live.attempts[made.launch] = made.attempt
            except Exception as error:  # noqa: BLE001
                # Its own caller is told; the others go on, as if it had come alone.
                arrival.refusal = error
        await self._write(asked[0].pool)

    async def _write(self, pool: str) -> None:
        if not self._made:
            return
        if not await reservations.insert(self._conn, self._made):
            # A launch has got a reservation in another pool meanwhile.
            raise Collision("database")
        held = [(one, by) for one, by in zip(self._made, self._actors, strict=True) if one.state is State.HELD]
        causes = [Cause(pool, by, "reserved", launch=one.launch, reservation=one.name) for one, by in held]
        entries = [entries_of_hold(one.items, one.moved) for one, _ in held]
        await balances.write_all(self._conn, pool, zip(causes, entries, strict=True))
        if not await remember(self._conn, self._answers):
            raise Collision("database")


def _decide(view: lines.View, arrival: Arrival, sequence: int, live: Live) -> Reservation:
    """Decides on an arrival, and counts what it takes. Raises what reserving raises."""
    asked, now = arrival.asked, live.now
    # Before the units: what the launch has already is mostly why no more of them fit.
    if found := live.reservations.get((asked.launch, asked.counted)):
        raise ResourceExists(found)
    if (newest := live.attempts.get(asked.launch, 0)) > asked.counted:
        raise LaunchEnded(asked.launch, f"attempt {asked.counted}, which attempt {newest} has followed")
    claim = view.claim(arrival.name, sequence, arrival.asked)
    prospect = view.line.prospect_of(claim)
    waits = not prospect.fits
    if waits and not (arrival.may_wait and prospect.can_wait):
        raise prospect.admission.refusal(arrival.may_wait)
    if waits and view.line.length >= MAX_WAITING:
        raise Overloaded(retry_after=60.0)
    if waits:
        view.line.wait(prospect)
    else:
        view.hold(prospect)
    return reservation_of(prospect, str(uuid.uuid4()), now, arrival.time_to_live)
