"""The processes of replicas: started, found again, watched, told to stop. Tells the state what befalls them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import signal
from pathlib import Path

from modelfleetd import names
from modelfleetd.kit.failpoint import passing
from modelfleetd.kit.ports import REPLICAS, reserve_port
from modelfleetd.node import domain, processes
from modelfleetd.node.domain import Phase, Process, Replica, Target
from modelfleetd.node.readiness import Readiness
from modelfleetd.node.state import State
from modelfleetd.platform.model import DesiredModel, EffectKind

_log = logging.getLogger(__name__)

# Seconds between questions: while a replica starts, and once it has been ready.
_WHILE_STARTING = (0.05, 0.5)
_WHILE_SERVING = 5.0
# So many unanswered questions in a row take a replica out: one may be lost to a busy machine.
_PATIENCE = 2


class Replicas:
    """Runs the replicas of one agent.

    Args:
        state: what shall be and what is.
        folder: where replicas run and their logs are.
        tasks: runs the watchers; ends with the agent, unlike the replicas.
    """

    def __init__(self, state: State, folder: Path, tasks: asyncio.TaskGroup) -> None:
        self._state = state
        self._tasks = tasks
        self._logs = folder / "logs"
        self._work = folder / "work"
        self._logs.mkdir(parents=True, exist_ok=True)
        self._work.mkdir(parents=True, exist_ok=True)
        self._exits: dict[str, processes.Exit] = {}
        self._watchers: dict[str, asyncio.Task[None]] = {}
        self._draw = random.SystemRandom()

    @property
    def logs(self) -> Path:
        """The folder of their logs."""
        return self._logs

    def start(self, target: Target, model: DesiredModel) -> None:
        """Starts one replica. The intent is durable before the process is: a crash in between leaks nothing."""
        taken = frozenset(replica.port for replica in self._state.replicas.values())
        port, reservation = reserve_port(REPLICAS, taken=taken, draw=self._draw.randint)
        with reservation:
            replica = self._state.intend(target, model, port)
            try:
                with passing("node", "call", "start_replica"):
                    process = processes.start(
                        domain.command_of(replica),
                        owner=f"{self._state.agent_id}/{replica.uid}",
                        folder=self._work,
                        log=self._logs / f"{replica.uid}.log",
                        environment=replica.spec.environment,
                        inherit=[reservation],
                    )
            except OSError as problem:
                _log.warning("%s cannot be started: %s", replica.uid, problem)
                self._state.gone(replica.uid, f"cannot be started: {problem.strerror}")
                return
        self._state.started(replica.uid, process)
        _log.info("%s runs as process %d on port %d", replica.uid, process.pid, port)
        self._watch(self._state.replicas[replica.uid], process)

    def recover(self) -> Process | None:
        """Finds the replicas of the agent's last life: those that run are watched, those that ended are written off.

        Returns the agent's Envoy, where one runs that the store does not know.
        """
        owned = processes.owned(self._state.agent_id)
        for uid, replica in list(self._state.replicas.items()):
            process = replica.process or owned.get(uid)
            if process is None:
                self._state.gone(uid, "the agent ended before it could start it")
            elif not processes.runs(process):
                self._state.gone(uid, "ended while the agent was away")
            else:
                if replica.process is None:
                    self._state.started(uid, process)
                _log.info("%s still runs as process %d", uid, process.pid)
                self._watch(self._state.replicas[uid], process)
        for name, process in owned.items():
            if name != "envoy" and name not in self._state.replicas:
                _log.warning("%s runs as process %d and should not; it is ended", name, process.pid)
                processes.end(process, signal.SIGKILL)
        return owned.get("envoy")

    def terminate(self, replica: Replica) -> None:
        """Tells a replica to end."""
        if replica.process is not None:
            with passing("node", "call", "end_replica"):
                processes.end(replica.process, signal.SIGTERM)

    def kill(self, replica: Replica) -> None:
        """Ends a replica that does not end by itself."""
        if replica.process is not None:
            _log.warning("%s did not end in time and is killed", replica.uid)
            processes.end(replica.process, signal.SIGKILL)

    def close(self) -> None:
        """Stops watching; the replicas stay."""
        for ending in self._exits.values():
            ending.close()
        for watcher in self._watchers.values():
            watcher.cancel()

    def _watch(self, replica: Replica, process: Process) -> None:
        self._watchers[replica.uid] = self._tasks.create_task(self._follow(replica), name=f"readiness of {replica.uid}")
        self._exits[replica.uid] = processes.Exit(process, lambda: self._ended(replica.uid))

    def _ended(self, uid: str) -> None:
        self._exits.pop(uid, None)
        if watcher := self._watchers.pop(uid, None):
            watcher.cancel()
        if uid in self._state.replicas:
            _log.info("%s has ended", uid)
            self._state.gone(uid, "its process has ended")

    async def _follow(self, replica: Replica) -> None:
        """Asks one replica whether it is ready, for as long as it lives."""
        readiness = Readiness(replica.port, names.MODEL.parse(replica.model)[0])
        try:
            pause, unanswered = _WHILE_STARTING[0], 0
            while (current := self._state.replicas.get(replica.uid)) and current.phase.counts:
                ready = await readiness.ready()
                current = self._state.replicas.get(replica.uid)
                if current is None:
                    return
                unanswered = 0 if ready else unanswered + 1
                if ready and current.phase in (Phase.STARTING, Phase.UNAVAILABLE):
                    self._state.move(replica.uid, Phase.READY)
                elif unanswered >= _PATIENCE and current.phase in (Phase.READY, Phase.AVAILABLE):
                    lost = EffectKind.REPLICA_LOST if current.phase is Phase.AVAILABLE else None
                    self._state.move(replica.uid, Phase.UNAVAILABLE, lost, "it does not say that it is ready")
                if self._state.replicas[replica.uid].phase is Phase.AVAILABLE and not unanswered:
                    pause = _WHILE_SERVING
                else:
                    pause = min(2 * pause, _WHILE_STARTING[1])
                await asyncio.sleep(pause)
        finally:
            with contextlib.suppress(asyncio.CancelledError):
                await readiness.close()
