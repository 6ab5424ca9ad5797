"""A snapshot, without I/O, against a registry of which nothing is fixed but its history: when pages are read, what is
away, what is compacted and what is lost."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelfleet.errors import NotFound, OutOfRange, Unavailable
from modelfleet.registry.v1 import registry_pb2 as pb
from modelfleet.snapshot.following import Ask, Following, Pause, Step, Watch
from modelfleet.snapshot.state import BaselineChange, State

TYPES = [f"modelTypes/{key}" for key in "abc"]
MODELS = [f"{name}/models/{key}" for name in TYPES for key in ("v1", "v2")]

Entries = dict[str, pb.ModelType | pb.Model]


def entry(name: str, revision: int, content: int) -> pb.ModelType | pb.Model:
    if "/models/" in name:
        return pb.Model(name=name, revision=revision, description=str(content))
    return pb.ModelType(name=name, revision=revision, baseline=f"{name}/models/v{content % 3}" if content % 3 else "")


class Registry:
    """A ledger of a few entries, all of its past, and the answers that it would give."""

    def __init__(self) -> None:
        self.revisions: list[pb.Revision] = []
        # The state at each revision, the empty one first.
        self.states: list[Entries] = [{}]
        self.oldest = 1

    @property
    def newest(self) -> int:
        return len(self.revisions)

    def write(self, names: list[str], content: int, history: str = "h") -> None:
        """One revision: of each name, create, change or delete it, as the content says; no model lacks its type."""
        number = self.newest + 1
        state = dict(self.states[-1])
        revision = pb.Revision(number=number, hash=f"{history}{number}")
        revision.previous_hash = self.revisions[-1].hash if self.revisions else ""
        missing = {name.split("/models/")[0] for name in names} - state.keys()
        for position, name in enumerate(sorted(missing | set(names))):
            change = revision.changes.add(resource=name, action=pb.ResourceChange.UPDATED)
            in_use = any(other.startswith(f"{name}/") for other in {*state, *names})
            if name in state and (content + position) % 4 == 0 and not in_use:
                del state[name]
                change.action = pb.ResourceChange.DELETED
                continue
            state[name] = entry(name, number, content + position)
            after = change.model if "/models/" in name else change.model_type
            after.CopyFrom(state[name])  # type: ignore[arg-type]
        revision.changes.add(resource="teams/feed").team.name = "teams/feed"
        self.revisions.append(revision)
        self.states.append(state)

    def forget(self, kept: int) -> None:
        """Loses the revisions after one, as a failover may."""
        del self.revisions[kept:]
        del self.states[kept + 1 :]

    def answer(self, asked: Ask, at: int) -> Any:
        """Answers a call as of a revision."""
        least = asked.fields.get("min_revision", 0)
        if least > self.newest:
            raise OutOfRange("gone", metadata={"current_revision": str(self.newest)})
        at = max(at, least)
        state = self.states[at]
        if asked.method == "get_revision":
            number = int(asked.fields["name"].split("/")[1])
            if not self.oldest <= number <= self.newest:
                raise NotFound("compacted")
            return self.revisions[number - 1]
        if asked.method == "get_model_type":
            if asked.fields["name"] not in state:
                raise NotFound("no such type")
            return state[asked.fields["name"]]
        # Two entries a page, so that there are several.
        if asked.method == "list_model_types":
            return self._page(pb.ListModelTypesResponse, "model_types", asked, [n for n in state if n in TYPES], at)
        parent = asked.fields["parent"].removesuffix("-")
        return self._page(pb.ListModelsResponse, "models", asked, [n for n in state if n.startswith(parent)], at)

    def _page(self, kind: Any, items: str, asked: Ask, names: list[str], at: int) -> Any:
        if items == "models":
            names = [name for name in names if "/models/" in name]
        after = asked.fields.get("page_token", "")
        listed = sorted(name for name in names if name > after)
        page = kind(revision=at, next_page_token=listed[1] if len(listed) > 2 else "")
        getattr(page, items).extend(self.states[at][name] for name in listed[:2])
        return page

    def watch(self, after_revision: int, model_types: list[str]) -> Iterator[pb.WatchRevisionsResponse]:
        """Everything that a watch gives now, at the end how far it has come."""
        if not self.oldest - 1 <= after_revision <= self.newest:
            raise OutOfRange("compacted", metadata={"current_revision": str(self.newest)})
        yield pb.WatchRevisionsResponse(current_revision=self.newest, position=after_revision)
        for revision in self.revisions[after_revision:]:
            about = {change.resource.split("/models/")[0] for change in revision.changes}
            if not model_types or about & set(model_types):
                yield pb.WatchRevisionsResponse(
                    revision=revision, current_revision=self.newest, position=revision.number
                )
        yield pb.WatchRevisionsResponse(current_revision=self.newest, position=self.newest)


@dataclass
class Run:
    """A snapshot at work; what happens in between is drawn."""

    registry: Registry
    following: Following
    told: list[BaselineChange] = field(default_factory=list)
    # Baselines by type, as readers saw them first.
    first: dict[str, str] | None = None

    @classmethod
    def of(cls, registry: Registry, model_types: list[str] | None = None) -> Run:
        told: list[BaselineChange] = []
        following = Following(model_types or (), told.append, monotonic=lambda: 0.0, chance=lambda: 0.5)
        return cls(registry, following, told)

    def until_current(self, draw: Any, *, checked: bool = True) -> list[Step]:
        """Does the steps until it is current; pages are read, and revisions written, whenever the draw says so."""
        done: list[Step] = []
        steps = self.following.steps()
        step = next(steps)
        disturbances = 8
        for _ in range(200):
            done.append(step)
            try:
                if isinstance(step, Watch):
                    for message in self.registry.watch(**step.fields):
                        self.following.take(message)
                        if checked:
                            self.check()
                    if self.following.state.is_published and not self.following.problem:
                        return done
                    step = steps.send(None)
                elif isinstance(step, Ask):
                    # Not for ever: a list that is begun again each time would never end.
                    disturbances -= 1
                    happens = draw(4) if disturbances > 0 else 0
                    if happens == 3:
                        raise Unavailable("away")
                    if happens == 2:
                        self.registry.write([MODELS[draw(len(MODELS))]], draw(100))
                    # Any replica may answer, however far it is behind.
                    step = steps.send(self.registry.answer(step, self.registry.newest - draw(self.registry.newest + 1)))
                else:
                    step = steps.send(None)
            except AssertionError:
                raise
            except Exception as error:  # as the drivers do
                step = steps.throw(error)
        raise AssertionError(f"not current after 200 steps: {self.following.problem}")

    def check(self) -> None:
        """Whatever readers see is the ledger at exactly one revision."""
        state = self.following.state
        if not state.is_published:
            return
        if self.first is None:
            self.first = {route.name: route.baseline for route in state}
        expected = self.registry.states[state.revision]
        chosen = self.following.filter
        types = {n: e for n, e in expected.items() if n in TYPES and (not chosen or n in chosen)}
        assert {route.name: route.model_type for route in state} == types
        for route in state:
            below = {n: e for n, e in expected.items() if n.startswith(f"{route.name}/models/")}
            assert dict(route.models) == below
            assert all(state.models.get(name) is model for name, model in route.models.items())
            assert route is state.routes.get(route.name.split("/")[1])


writes = st.lists(
    st.tuples(st.lists(st.sampled_from(TYPES + MODELS), min_size=1, max_size=3, unique=True), st.integers(0, 99)),
    max_size=12,
)


def undisturbed(end: int) -> int:
    return 0


def written(ops: list[tuple[list[str], int]]) -> Registry:
    registry = Registry()
    for names, content in ops:
        registry.write(names, content)
    return registry


@settings(max_examples=60)
@given(data=st.data(), ops=writes, more=writes, chosen=st.sampled_from([[], ["a"], [TYPES[1], "c"]]))
def test_whenever_pages_are_read_readers_see_one_revision_after_the_other(
    data: st.DataObject, ops: list[Any], more: list[Any], chosen: list[str]
) -> None:
    def draw(end: int) -> int:
        return data.draw(st.integers(0, end - 1))

    run = Run.of(written(ops), chosen)
    run.until_current(draw)
    run.check()
    assert run.following.state.revision == run.registry.newest
    for names, content in more:
        run.registry.write(names, content)
    steps = run.until_current(draw)
    run.check()
    told = dict(run.first or {})
    for change in run.told:
        assert told.get(change.model_type, "") == change.before != change.after
        told[change.model_type] = change.after
    assert {n: b for n, b in told.items() if b} == {r.name: r.baseline for r in run.following.state if r.baseline}
    assert not any(isinstance(step, Ask) and step.method.startswith("list") for step in steps[:2]), "it goes on"


@settings(max_examples=40)
@given(data=st.data(), ops=writes, more=writes, kept=st.integers(0, 12))
def test_what_was_compacted_or_lost_meanwhile_makes_it_load_again(
    data: st.DataObject, ops: list[Any], more: list[Any], kept: int
) -> None:
    def draw(end: int) -> int:
        return data.draw(st.integers(0, end - 1))

    run = Run.of(written(ops))
    run.until_current(undisturbed)
    lost = data.draw(st.booleans())
    if lost:
        run.registry.forget(min(kept, run.registry.newest))
    for names, content in more:
        run.registry.write(names, content, history="other" if lost else "h")
    if not lost:
        run.registry.oldest = run.registry.newest + 1
    run.until_current(draw, checked=False)
    run.check()
    assert run.following.state.revision == run.registry.newest


def test_loading_again_keeps_what_is_as_it_was_and_tells_which_baselines_are_others() -> None:
    registry = written([([TYPES[0]], 1), ([MODELS[0]], 1), ([MODELS[1]], 1)])
    run = Run.of(registry)
    run.until_current(undisturbed)
    old = run.following.state
    registry.write([TYPES[0]], 5)
    registry.oldest = registry.newest + 1
    run.until_current(undisturbed)
    assert run.following.state is not old
    assert run.following.state.models[MODELS[0]] is old.models[MODELS[0]]
    (change,) = run.told
    assert (change.before, change.after) == (f"{TYPES[0]}/models/v1", f"{TYPES[0]}/models/v2")


def test_a_reader_that_comes_too_early_is_told_so() -> None:
    state = State()
    for read in (lambda: state.routes.get("a"), lambda: state.models.get("a"), lambda: list(state)):
        with pytest.raises(RuntimeError, match="call wait_ready"):
            read()


def test_what_a_reader_has_does_not_change() -> None:
    registry = written([([TYPES[0], *MODELS[:2]], 1)])
    run = Run.of(registry)
    run.until_current(undisturbed)
    route = run.following.state.routes["a"]
    registry.write([TYPES[0], MODELS[0]], 2)
    run.until_current(undisturbed)
    assert (route.model_type.revision, route.models[MODELS[0]].revision) == (1, 1)
    assert run.following.state.routes["a"].models[MODELS[0]].revision == 2


def test_it_pauses_longer_after_each_failure_and_not_at_all_in_step_with_others() -> None:
    pauses = []
    for chance in (0.0, 1.0):
        steps = Following(chance=lambda: chance).steps()  # noqa: B023
        step = next(steps)
        found: list[float] = []
        while len(found) < 10:
            if isinstance(step, Pause):
                found.append(step.seconds)
                step = steps.send(None)
            else:
                step = steps.throw(Unavailable("away"))
        pauses.append(found)
    quick, slow = pauses
    assert quick == sorted(quick) and slow == sorted(slow)
    assert slow[-1] == 10.0 and quick[-1] == 5.0 and slow[0] < 0.5


def test_a_callback_that_fails_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    def fail(change: BaselineChange) -> None:
        raise ValueError("mine")

    registry = written([([TYPES[0]], 1)])
    run = Run(registry, Following((), fail, monotonic=lambda: 0.0))
    run.until_current(undisturbed)
    registry.write([TYPES[0]], 2)
    run.until_current(undisturbed)
    assert run.following.state.routes["a"].baseline.endswith("v2")
    assert "on_baseline failed" in caplog.text


def test_it_is_no_older_than_the_last_word_that_it_was_current() -> None:
    now = 100.0
    following = Following(monotonic=lambda: now)
    steps = following.steps()
    registry = written([([TYPES[0]], 1)])
    step = next(steps)
    while isinstance(step, Ask):
        step = steps.send(registry.answer(step, registry.newest))
    assert following.state.is_published and following.age == float("inf")
    following.take(pb.WatchRevisionsResponse(current_revision=1))
    assert (following.age, following.problem) == (0.0, "")
    now = 107.0
    assert following.age == 7.0
    # It hears that there is more than it has.
    following.take(pb.WatchRevisionsResponse(current_revision=2))
    assert following.age == 7.0
    registry.write([TYPES[0]], 2)
    following.take(pb.WatchRevisionsResponse(revision=registry.revisions[-1], current_revision=2))
    assert following.age == 0.0


def test_more_model_types_than_a_watch_takes_are_refused() -> None:
    with pytest.raises(ValueError, match="at most 1,000 model types"):
        Following(f"t{number}" for number in range(1001))
