"""What may be done about a model, by its role and tier; and which entry somebody means."""

from __future__ import annotations

from typing import Any

import pytest

from modelfleet.asking import Unknown
from modelfleet.common.v1 import serving_pb2
from modelfleet.launcher.v1 import launcher_pb2
from modelfleet.lookup import Ambiguous, Entry, NothingFound, choose
from modelfleet.mitigate import Action, Case, Response, respond
from modelfleet.registry.v1 import assets_pb2
from modelfleet.registry.v1 import registry_pb2 as pb
from tests.support.incidents import CTR, NEW, OLD, launch, model_type, split

TEAM = pb.Team(name="teams/feed", on_call="pager-feed", contacts=["bob", "carol"])
SHIFTING = launch(launcher_pb2.Launch.SHIFTING)


def response(role: pb.Model.Role.ValueType, name: str = NEW, **fields: Any) -> Response:
    given: dict[str, Any] = {
        "model_type": model_type(splits=[split(old=9_500, new=500)], tier=serving_pb2.TIER1),
        "model": pb.Model(name=name, role=role),
        "team": TEAM,
        "launches": [],
    }
    return respond(Case(**(given | fields)))


def test_an_experiment_may_be_ended_in_one_action() -> None:
    found = response(pb.Model.EXPERIMENT)
    assert (found.action, found.commands) == (Action.END_EXPERIMENT, ("modelfleet mitigate ctr/new",))
    assert "5% of the traffic goes back to old, the baseline" in found.steps[0]
    assert found.steps[1] == "Then tell its owner: pager-feed (team feed; then bob, carol)."


def test_an_experiment_that_is_being_ended_is_followed() -> None:
    ending = launch(launcher_pb2.Launch.SHIFTING, strategy=launcher_pb2.Launch.END_EXPERIMENT)
    found = response(pb.Model.EXPERIMENT, launches=[ending])
    assert (found.action, found.launch) == (Action.FOLLOW_LAUNCH, "launches/l1")


def test_a_launch_in_flight_is_said_to_hold_or_to_go_back_first() -> None:
    replaces = launch(launcher_pb2.Launch.SHIFTING)
    replaces.candidate, replaces.baseline = f"{CTR}/models/newer", OLD
    (_, meanwhile, _) = response(pb.Model.EXPERIMENT, launches=[replaces]).steps
    assert meanwhile.startswith("launches/l1, which is in flight on the route, does not have to end first: it holds")
    ramps = launch(launcher_pb2.Launch.SHIFTING)
    ramps.candidate, ramps.baseline = NEW, OLD
    (_, meanwhile, _) = response(pb.Model.EXPERIMENT, launches=[ramps]).steps
    assert "moves the same model: it goes back first" in meanwhile


def test_an_experiment_whose_end_was_taken_back_may_be_ended_again() -> None:
    back = launch(launcher_pb2.Launch.ROLLING_BACK, strategy=launcher_pb2.Launch.END_EXPERIMENT)
    assert response(pb.Model.EXPERIMENT, launches=[back]).action is Action.END_EXPERIMENT


@pytest.mark.parametrize("launches", [None, [], [SHIFTING], [launch(launcher_pb2.Launch.ROLLING_BACK)]])
def test_a_baseline_is_never_turned_off_and_its_owner_is_paged(launches: list[launcher_pb2.Launch] | None) -> None:
    found = response(pb.Model.BASELINE, OLD, launches=launches)
    assert found.action is Action.PAGE_OWNER
    assert found.steps[:2] == (
        "It is the baseline of ctr: never simply turn it off.",
        "Page its owner now, at any hour: pager-feed (team feed; then bob, carol).",
    )
    assert (found.on_call, found.contacts) == ("pager-feed", ("bob", "carol"))


def test_a_baseline_that_a_launch_is_replacing_comes_with_the_command_that_takes_it_back() -> None:
    found = response(pb.Model.BASELINE, OLD, launches=[SHIFTING])
    assert found.commands == ('modelfleet launch abort l1 --reason "…"',)
    going_back = response(pb.Model.BASELINE, OLD, launches=[launch(launcher_pb2.Launch.ROLLING_BACK)])
    assert going_back.commands == ("modelfleet launch watch l1",)
    unknown = response(pb.Model.BASELINE, OLD, launches=None)
    assert unknown.commands == () and unknown.steps[2] == "Whether a launch is in flight is not known."


def test_a_candidate_is_taken_back_with_the_launch_that_brings_it_in() -> None:
    found = response(pb.Model.CANDIDATE, launches=[SHIFTING])
    assert (found.action, found.launch) == (Action.ABORT_LAUNCH, "launches/l1")
    back = response(pb.Model.CANDIDATE, launches=[launch(launcher_pb2.Launch.ROLLING_BACK)])
    assert (back.action, back.launch) == (Action.FOLLOW_LAUNCH, "launches/l1")


def queued(candidate: str = NEW) -> launcher_pb2.Launch:
    """A launch that waits in line; a list of launches has the newest first, and so this before the one in flight."""
    found = launch(launcher_pb2.Launch.PENDING)
    found.name, found.candidate = "launches/queued", candidate
    return found


def test_what_is_taken_back_is_the_launch_in_flight_and_never_the_one_that_waits_behind_it() -> None:
    baseline = response(pb.Model.BASELINE, OLD, launches=[queued(f"{CTR}/models/newer"), SHIFTING])
    assert baseline.commands == ('modelfleet launch abort l1 --reason "…"',) and "launches/l1" in baseline.steps[2]
    candidate = response(pb.Model.CANDIDATE, launches=[queued(), SHIFTING])
    assert (candidate.action, candidate.launch) == (Action.ABORT_LAUNCH, "launches/l1")
    back = response(pb.Model.BASELINE, OLD, launches=[queued(), launch(launcher_pb2.Launch.ROLLING_BACK)])
    assert back.commands == ("modelfleet launch watch l1",)


def test_a_launch_that_only_waits_in_line_has_done_nothing_to_a_baseline() -> None:
    found = response(pb.Model.BASELINE, OLD, launches=[queued()])
    assert found.commands == () and not any("launches/queued" in step for step in found.steps)


def test_where_nobody_knows_of_launches_a_candidate_is_the_owners_matter() -> None:
    assert response(pb.Model.CANDIDATE, launches=None).action is Action.PAGE_OWNER


def test_a_holdout_is_the_owners_matter() -> None:
    assert response(pb.Model.HOLDOUT).action is Action.PAGE_OWNER


@pytest.mark.parametrize("role", [pb.Model.CANDIDATE, pb.Model.RETIRED])
def test_what_takes_no_traffic_needs_nothing_and_what_takes_it_without_a_role_needs_people(
    role: pb.Model.Role.ValueType,
) -> None:
    assert response(role).action is Action.NOTHING
    assert response(role, serves=True).action is Action.PAGE_OWNER


def test_a_type_without_a_baseline_has_nothing_to_take_back() -> None:
    assert response(pb.Model.BASELINE, model=None).action is Action.PAGE_OWNER


@pytest.mark.parametrize(
    ("tier", "said"),
    [
        (serving_pb2.TIER0, "Page its owner now, at any hour"),
        (serving_pb2.TIER2, "Page its owner now:"),
        (serving_pb2.TIER_UNSPECIFIED, "Page its owner now:"),
        (serving_pb2.TIER3, "Tell its owner in working hours"),
    ],
)
def test_how_urgent_it_is_depends_on_the_tier(tier: serving_pb2.Tier.ValueType, said: str) -> None:
    found = response(pb.Model.BASELINE, OLD, model_type=model_type(tier=tier))
    assert found.steps[1].startswith(said)


@pytest.mark.parametrize(
    ("team", "said"),
    [
        (None, "team feed, whose contacts are not known"),
        (pb.Team(), "team feed, which names neither an on-call nor contacts"),
        (pb.Team(contacts=["bob"]), "team feed, which names no on-call; bob"),
        (pb.Team(on_call="pager"), "pager (team feed)"),
    ],
)
def test_whom_to_page_is_said_also_where_the_team_does_not_say_it(team: pb.Team | None, said: str) -> None:
    assert said in response(pb.Model.BASELINE, OLD, team=team).steps[1]


# --- which entry somebody means ---------------------------------------------------------------------------------------


def matches(
    *found: tuple[str, assets_pb2.EntryMatch.Basis.ValueType], more: bool = False
) -> assets_pb2.LookupEntriesResponse:
    listed = [assets_pb2.EntryMatch(resource=name, basis=basis) for name, basis in found]
    return assets_pb2.LookupEntriesResponse(matches=listed, truncated=more)


PART, URI = assets_pb2.EntryMatch.PART_OF_NAME, assets_pb2.EntryMatch.ASSET_URI


def test_the_only_entry_that_fits_is_meant() -> None:
    assert choose("new", matches((NEW, PART))) == Entry(CTR, NEW)
    assert choose("s3://x", matches((CTR, URI), ("modelTypes/other", PART))) == Entry(CTR)


def test_a_type_is_meant_rather_than_the_models_below_it() -> None:
    assert choose("ct", matches((CTR, PART), (OLD, PART), (NEW, PART))) == Entry(CTR)


def test_of_several_entries_somebody_has_to_say_which() -> None:
    with pytest.raises(Ambiguous) as raised:
        choose("ct", matches((CTR, PART), (f"{CTR}_late/models/old", PART), more=True))
    assert str(raised.value) == "more than 2 entries fit 'ct'"
    assert [match.resource for match in raised.value.matches] == [CTR, f"{CTR}_late/models/old"]


def test_nothing_that_fits_is_told_with_what_to_type_next() -> None:
    with pytest.raises(NothingFound, match="modelfleet registry type list"):
        choose("nope", matches())
    with pytest.raises(NothingFound, match="registry does not answer"):
        choose("nope", Unknown("registry does not answer"))
