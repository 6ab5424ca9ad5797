"""The platform's words ↔ the launch's: what an agent observes as `Seen`, and what a launch asks for as a whole."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Any

from google.protobuf import json_format

from modelfleet.common.v1 import serving_pb2
from modelfleet.platform.v1 import platform_pb2
from modelfleetd.kit.codec import from_proto
from modelfleetd.launcher.domain.actions import Apply
from modelfleetd.launcher.domain.launch import Launch
from modelfleetd.launcher.domain.observed import Observed, Seen
from modelfleetd.launcher.domain.record import ModelFacts, Share
from modelfleetd.platform import wire
from modelfleetd.platform.model import (
    DesiredModel,
    DesiredServing,
    ModelShare,
    ServingObservation,
    ServingSpec,
)

_NOTHING = DesiredServing()


def seen_of(observation: ServingObservation, rising: str, falling: str) -> Seen:
    """What matters to a launch of what an agent has observed."""
    age = timedelta(0)
    if observation.observe_time is not None and observation.split_time is not None:
        age = observation.observe_time - observation.split_time - (observation.statistics_age or timedelta(0))
    return Seen(
        region=observation.region,
        candidate=observed_of(observation, rising),
        baseline=observed_of(observation, falling) if falling else Observed(),
        known=observation.desired is not None,
        current=observation.acknowledged_generation >= observation.generation,
        requests=sum(model.requests_since_split for model in observation.models),
        split_age=age,
        time=observation.observe_time,
        statistics_age=observation.statistics_age,
    )


def observed_of(observation: ServingObservation, model: str) -> Observed:
    """What an agent has observed of one model."""
    desired, found = observation.desired or _NOTHING, observation.model(model)
    return Observed(
        desired=desired.replicas_of(model),
        share=desired.share_of(model),
        starting=found.starting_replicas,
        available=found.available_replicas,
        unavailable=found.unavailable_replicas,
        terminating=found.terminating_replicas,
        acknowledged=found.acknowledged_basis_points,
        observed=found.observed_basis_points,
        requests=found.requests,
        errors=found.errors,
        message=found.message,
        since_split=found.requests_since_split,
        errors_since_split=found.errors_since_split,
        latency_p99_ms=found.latency_p99_ms,
    )


def split_of(desired: DesiredServing | None) -> tuple[Share, ...]:
    """The split of a desired state."""
    return tuple(Share(share.model, share.share_basis_points) for share in (desired or _NOTHING).shares)


def is_same(asked: DesiredServing, found: DesiredServing | None) -> bool:
    """Whether two desired states have the same replicas and shares; how replicas are run is the agent's to write."""
    if found is None:
        return False
    replicas = [{model.model: model.replicas for model in desired.models} for desired in (asked, found)]
    return replicas[0] == replicas[1] and split_of(asked) == split_of(found)


def desired_of(apply: Apply, launch: Launch, observation: ServingObservation) -> DesiredServing:
    """The whole state that an act asks for. Whatever runs beside the two models stays as it is."""
    current = observation.desired or _NOTHING
    wanted = {launch.rising: apply.new_replicas, launch.falling: apply.old_replicas}
    others = [model for model in current.models if model.model not in wanted]
    swapped = [
        DesiredModel(model, _spec(model, launch, current), replicas)
        for model, replicas in wanted.items()
        if model and replicas > 0
    ]
    return DesiredServing(models=(*swapped, *others), shares=_shares(apply.share, launch, current.shares))


def _shares(share: int | None, launch: Launch, current: Iterable[ModelShare]) -> tuple[ModelShare, ...]:
    """The new split. The pair stays where it stands, in its order: so a growing share takes from its neighbour only,
    and whoever is with a model by a sticky key does not move back and forth. A new model stands before the other.
    """
    pair = (launch.rising, launch.falling)
    now = [found for found in current if found.share_basis_points > 0]
    if share is None or not (now or share):
        return ()
    both = sum(found.share_basis_points for found in now if found.model in pair)
    if not now:
        both = share
    elif both == 0:
        both = 10_000 - sum(found.share_basis_points for found in now)
    place = next((index for index, found in enumerate(now) if found.model in pair), 0)
    others = [found for found in now if found.model not in pair]
    place = sum(1 for found in now[:place] if found.model not in pair)
    ours = [ModelShare(launch.rising, share), ModelShare(launch.falling, both - share)]
    if [found.model for found in now if found.model in pair] == [launch.falling, launch.rising]:
        ours.reverse()
    ours = [found for found in ours if found.share_basis_points > 0]
    return (*others[:place], *ours, *others[place:])


def _spec(model: str, launch: Launch, current: DesiredServing) -> ServingSpec:
    """How a replica is run. What runs stays as the agent knows it, so that nothing restarts for a difference."""
    running = next((found.serving_spec for found in current.models if found.model == model), None)
    if running is not None:
        return running
    facts = launch.candidate_facts if model == launch.candidate else launch.baseline_facts
    assert facts is not None
    return spec_of(facts)


def spec_of(facts: ModelFacts) -> ServingSpec:
    """The pinned serving spec of a model."""
    message = json_format.ParseDict(dict(facts.spec), serving_pb2.ServingSpec())
    return from_proto(message, ServingSpec)


def spec_to_document(message: serving_pb2.ServingSpec) -> Mapping[str, Any]:
    """A serving spec as a launch keeps it."""
    return json_format.MessageToDict(message)


def desired_to_document(desired: DesiredServing) -> Mapping[str, Any]:
    """A desired state as an intent keeps it."""
    return json_format.MessageToDict(wire.desired_to_proto(desired))


def desired_from_document(document: Mapping[str, Any]) -> DesiredServing:
    """A desired state of an intent: exactly what was recorded, so that a repetition has the same content."""
    return wire.desired_from_proto(json_format.ParseDict(dict(document), platform_pb2.DesiredServing()))
