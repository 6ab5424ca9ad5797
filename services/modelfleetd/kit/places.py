"""Every failpoint by name: those of a launch's path with the launches that pass them, and all others.

Before and after each commit and each outgoing call of every part. A name is `<part>.<before|after>_<kind>.<what>`:

    commit  what is committed: the method that is called, else the worker whose commit it is, else what the code names
    call    what is called of another part
    record  what a worker writes as a whole; of the launcher, the change of a round
    act     what is asked of a platform agent

`tests/kit/test_failpoints.py` compares this list with the code and with the contracts, both ways.
"""

from __future__ import annotations

import enum
import fnmatch
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Final


class Way(enum.Enum):
    """Which launch passes a place."""

    FORWARD = "goes through"
    BACK = "goes back after it has shifted traffic: it is aborted, or a gate fails"
    ABORTED = "is aborted after it has shifted traffic"
    QUEUED = "waits for another launch on its route, and goes through"
    WAITED = "waits in line for capacity, and goes through"
    CANCELLED = "waits in line for capacity, and is aborted there"
    STEERED = "is paused, resumed and approved by people, who skip its bakes"
    INTERRUPTED = "is paused and resumed in the middle of its rounds"
    JUDGED = "is judged by evidence, stability and availability"
    ANEW = "begins when every service and the node agent have just begun"
    LOST = "loses every replica of its candidate after it has reduced the baseline"
    OVERTAKEN = "finds an agent that knows a newer epoch, as after the launcher's database was restored"
    TAKEN_BACK = "has succeeded and is taken back, which pre-empts the launch that is under way"
    REJECTED = "is rejected by an approver"
    PROMOTED = "is promoted in the middle of its bake"
    RETRIED = "is aborted, and tried again"
    FROZEN = "waits for a freeze window, and goes through by an override"
    HELD = "waits for approval when its candidate is put on hold"
    TOLD = "people are told of"


_ON_A_LAUNCH: Final[Mapping[Way, Mapping[str, str]]] = {
    Way.FORWARD: {
        "launcher.commit": "CreateLaunch claim watched take_duty",
        "launcher.record": (
            "change intent_estimate intent_reserve intent_activate intent_start intent_shift intent_reduce "
            "intent_finalize intent_settle outcome"
        ),
        "launcher.act": "start shift reduce",
        "launcher.call": (
            "GetModelType GetModel GetFlavor GetPool CreateEstimate CreateLaunchDecision SimulateReservation "
            "CreateReservation ActivateReservation ObserveServing ApplyServing FinalizeLaunch SettleReservation "
            "ListRegions ListServing ReportServing"
        ),
        "capacity.commit": (
            "CreateEstimate CreateLaunchDecision CreateReservation ActivateReservation SettleReservation"
        ),
        "capacity.call": "GetModel GetModelType ListRegions",
        "registry.commit": "FinalizeLaunch ReportServing",
        "node.commit": (
            "accepted floor_raised replica_started starting ready replica_available shares_acknowledged "
            "replica_draining stopping replica_ended counts"
        ),
        "node.call": "envoy envoy_file start_replica ModelReady end_replica",
    },
    Way.BACK: {
        "launcher.record": "intent_return intent_shed intent_forgo intent_release",
        "launcher.act": "return shed",
    },
    # A gate that refuses a candidate at the first step finds a baseline that was never reduced.
    Way.ABORTED: {
        "launcher.commit": "AbortLaunch",
        "launcher.record": "intent_grow",
        "launcher.act": "grow",
    },
    Way.QUEUED: {"launcher.commit": "leave_queue"},
    Way.WAITED: {
        "launcher.call": "GetReservation",
        "capacity.commit": "serve_those_who_wait",
    },
    Way.CANCELLED: {
        "launcher.record": "intent_cancel",
        "launcher.call": "CancelReservation",
        "capacity.commit": "CancelReservation",
    },
    Way.STEERED: {
        "launcher.commit": "PauseLaunch ResumeLaunch SkipLaunchStep ApproveLaunch",
        "launcher.call": "RenewReservation",
        "capacity.commit": "RenewReservation",
    },
    Way.INTERRUPTED: {"launcher.commit": "yield_lease"},
    Way.JUDGED: {"launcher.call": "JudgeModel EvaluateEvidence"},
    Way.ANEW: {
        "launcher.call": "ListTeams GetRegion",
        "launcher.commit": "look_at_every_launch sweep_notifications",
        "capacity.commit": "expire_and_release_holds",
        "node.commit": "life",
    },
    Way.LOST: {
        "launcher.record": "intent_restore",
        "launcher.act": "restore",
        "node.commit": "replica_lost",
    },
    Way.OVERTAKEN: {"launcher.commit": "raise_fence"},
    Way.TAKEN_BACK: {"launcher.commit": "RollBackLaunch take_precedence"},
    Way.REJECTED: {"launcher.commit": "RejectLaunch"},
    Way.PROMOTED: {"launcher.commit": "PromoteLaunch"},
    Way.RETRIED: {"launcher.commit": "RetryLaunch"},
    Way.FROZEN: {
        "launcher.commit": "CreateFreezeWindow UpdateFreezeWindow OverrideLaunchFreeze DeleteFreezeWindow",
        "launcher.call": "GetTeam",
    },
    Way.HELD: {"launcher.commit": "CreateHold LiftHold"},
    Way.TOLD: {
        "launcher.commit": "claim_notifications tell_*",
        "launcher.call": "webhook alertmanager",
    },
}
# What no launch of the matrix passes, by the reason. What is made of a name at run time is a pattern.
_ELSEWHERE: Final[Mapping[str, Mapping[str, str]]] = {
    "changes a resource before or beside launches; done once for each request_id": {
        "capacity.commit": (
            "CreateFlavor UpdateFlavor DeleteFlavor CreatePool UpdatePool DeletePool BookUsage CreateLoan EndLoan "
            "CreateCertificate CreateLaunchPolicy UpdateLaunchPolicy DeleteLaunchPolicy own"
        ),
        "registry.commit": (
            "CreateTeam UpdateTeam DeleteTeam CreateRegion UpdateRegion DeleteRegion CreateModelType UpdateModelType "
            "DeleteModelType CreateModel UpdateModel DeleteModel CreateAsset UpdateAsset DeleteAsset "
            "CreateExtensionSchema UpdateExtensionSchema DeleteExtensionSchema CreateNamingScheme UpdateNamingScheme "
            "DeleteNamingScheme RequestCriticality ApproveCriticality RejectCriticality WithdrawCriticality "
            "CreateEvaluationReport DeleteEvaluationReport CreateRiskAssessment DeleteRiskAssessment ApplyEntries "
            "AdoptServing CompactHistory own"
        ),
        "stability.commit": "CreateSilence EndSilence own",
        "launcher.commit": "own",
    },
    "a load test or a recording": {
        "capacity.commit": (
            "CreateRecording StopRecording DeleteRecording CreateLoadTest CancelLoadTest load_tests recordings "
            "delete_old_recordings"
        ),
        "capacity.call": (
            "GetAgent ApplyServing ObserveServing StartRecording ObserveRecording StopRecording prometheus"
        ),
        "capacity.act": "start_clone remove_clone",
        "capacity.record": "end",
        "node.commit": "recording",
    },
    "predictions and labels come in, and are judged and told of": {
        "stability.commit": (
            "WriteExamples WritePredictions WriteLabels WriteStatistics batch claim budgets stability_sweep "
            "learn_delays read_who_is_on_call evaluation slices_sweep derive_alerts alerts_to_* forget_old_alerts"
        ),
        "stability.record": "evaluation alerts",
        "stability.call": (
            "ListTeams GetModelType GetModel ListServingStatuses ListModelTypes ListModels GetRevision alertmanager"
        ),
    },
    "a service's work of its own, whatever is launched": {
        "launcher.commit": "tell_watchers observe_the_fleet export_spans count_notifications reconciler",
        "launcher.call": "ListPools",
        "capacity.commit": (
            "claim_whole_check look_for_absent_holders check_the_ledger check_the_whole_ledger look_at_loans "
            "usage_by_* forget_answered_requests"
        ),
        "capacity.call": "ListTeams GetRegion GetTeam ListEvaluationReports GetEvaluationReport",
        "registry.commit": (
            "registry_follower registry_compaction registry_requests registry_names registry_criticality "
            "registry_standings"
        ),
        "node.commit": "traffic_port envoy",
    },
    "a replica's server that knows readiness only as a whole, or is not ready before it is available": {
        "node.commit": "unavailable",
        "node.call": "ServerReady",
    },
}


def _names(named: Mapping[str, str]) -> Iterator[str]:
    for of, names in named.items():
        part, _, kind = of.partition(".")
        for name in names.split():
            yield from (f"{part}.{side}_{kind}.{name}" for side in ("before", "after"))


PLACES: Final[Mapping[str, Way]] = {name: way for way, named in _ON_A_LAUNCH.items() for name in _names(named)}
# Why no launch of the matrix passes them.
OTHER_PLACES: Final[Mapping[str, str]] = {name: why for why, named in _ELSEWHERE.items() for name in _names(named)}
_PATTERNS: Final = tuple(name for name in (*PLACES, *OTHER_PLACES) if "*" in name)


@cache
def is_listed(name: str) -> bool:
    """Whether a place is listed, by its name or by a pattern."""
    return name in PLACES or name in OTHER_PLACES or any(fnmatch.fnmatchcase(name, pattern) for pattern in _PATTERNS)
