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
        "node.commit": "life",
    },
}
# What no launch of the matrix passes: other verbs and resources, load tests, recordings, people who are told, repairs.
# A method here commits, or may. What is made of a name at run time is a pattern.
_ELSEWHERE: Final[Mapping[str, str]] = {
    "launcher.commit": (
        "RejectLaunch PromoteLaunch RetryLaunch RollBackLaunch OverrideLaunchFreeze CreateFreezeWindow "
        "UpdateFreezeWindow DeleteFreezeWindow CreateHold LiftHold "
        "take_precedence raise_fence claim_notifications look_at_every_launch tell_watchers tell_* observe_the_fleet "
        "export_spans sweep_notifications count_notifications reconciler own"
    ),
    "launcher.record": "intent_restore",
    "launcher.act": "restore",
    "launcher.call": "GetTeam ListPools webhook alertmanager",
    "capacity.commit": (
        "CreateFlavor UpdateFlavor DeleteFlavor CreatePool UpdatePool DeletePool BookUsage CreateLoan EndLoan "
        "CreateRecording StopRecording DeleteRecording CreateLoadTest CancelLoadTest CreateCertificate "
        "CreateLaunchPolicy UpdateLaunchPolicy DeleteLaunchPolicy "
        "claim_whole_check delete_old_recordings expire_and_release_holds look_for_absent_holders check_the_ledger "
        "check_the_whole_ledger look_at_loans usage_by_* forget_answered_requests load_tests recordings own"
    ),
    "capacity.call": (
        "ListTeams GetRegion GetTeam ListEvaluationReports GetEvaluationReport ApplyServing ObserveServing GetAgent "
        "StartRecording ObserveRecording StopRecording prometheus"
    ),
    "capacity.act": "start_clone remove_clone",
    "capacity.record": "end",
    "registry.commit": (
        "CreateTeam UpdateTeam DeleteTeam CreateRegion UpdateRegion DeleteRegion CreateModelType UpdateModelType "
        "DeleteModelType CreateModel UpdateModel DeleteModel CreateAsset UpdateAsset DeleteAsset "
        "CreateExtensionSchema UpdateExtensionSchema DeleteExtensionSchema CreateNamingScheme UpdateNamingScheme "
        "DeleteNamingScheme RequestCriticality ApproveCriticality RejectCriticality WithdrawCriticality "
        "CreateEvaluationReport DeleteEvaluationReport CreateRiskAssessment DeleteRiskAssessment ApplyEntries "
        "AdoptServing CompactHistory "
        "registry_follower registry_compaction registry_requests registry_names registry_criticality "
        "registry_standings own"
    ),
    "stability.commit": (
        "WriteExamples WritePredictions WriteLabels WriteStatistics CreateSilence EndSilence "
        "batch claim budgets stability_sweep learn_delays read_who_is_on_call evaluation slices_sweep derive_alerts "
        "alerts_to_* forget_old_alerts own"
    ),
    "stability.record": "evaluation alerts",
    "stability.call": (
        "ListTeams GetModelType GetModel ListServingStatuses ListModelTypes ListModels GetRevision alertmanager"
    ),
    "node.commit": "traffic_port envoy recording replica_lost available unavailable draining",
    "node.call": "ServerReady",
}


def _names(named: Mapping[str, str]) -> Iterator[str]:
    for of, names in named.items():
        part, _, kind = of.partition(".")
        for name in names.split():
            yield from (f"{part}.{side}_{kind}.{name}" for side in ("before", "after"))


PLACES: Final[Mapping[str, Way]] = {name: way for way, named in _ON_A_LAUNCH.items() for name in _names(named)}
OTHER_PLACES: Final = frozenset(_names(_ELSEWHERE))
_PATTERNS: Final = tuple(name for name in OTHER_PLACES if "*" in name)


@cache
def is_listed(name: str) -> bool:
    """Whether a place is listed, by its name or by a pattern."""
    return name in PLACES or name in OTHER_PLACES or any(fnmatch.fnmatchcase(name, pattern) for pattern in _PATTERNS)
