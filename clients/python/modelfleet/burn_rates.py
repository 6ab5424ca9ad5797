"""What rules for Prometheus and OpenSLO documents have in common: which pairs of windows fire what for an objective."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from modelfleet.common.v1 import serving_pb2
from modelfleet.registry.v1 import registry_pb2
from modelfleet.stability.v1 import slos_pb2 as pb
from modelfleet.wording import short

MIN_BAD: Final = 3
# The newest minute of an objective: 1 good, 0 bad, absent where it does not count.
MINUTE: Final = "modelfleet_slo_minute"


def pairs(slo: pb.Slo, objective: pb.Objective) -> Sequence[pb.BurnRate]:
    """Returns the pairs of windows that can fire for an objective.

    Coverage has none in the API, since nobody is paged for it; a ticket is written by the same pairs as for the others.
    """
    if objective.burn_rates:
        return objective.burn_rates
    others = next((other.burn_rates for other in slo.objectives if other.burn_rates), ())
    # A burn rate cannot exceed 1 / (1 - target).
    return [pair for pair in others if pair.factor < 1 / (1 - objective.target)]


def severity_of(slo: pb.Slo, objective: pb.Objective, pair: pb.BurnRate) -> str:
    """Returns what a pair is for a model: `page`, where tier and role let anybody be woken, else `ticket`."""
    may_page = objective.kind != pb.Objective.COVERAGE and pair.response == pb.BurnRate.PAGE
    return "page" if may_page and _wakes(slo) else "ticket"


def selector(slo: pb.Slo, objective: pb.Objective, metric: str = MINUTE) -> str:
    """Returns the series of an objective, in PromQL."""
    return f'{metric}{{slo="{short(slo.name)}",objective="{enum_name(objective, "kind").lower()}"}}'


def shorthand(span: Duration) -> str:
    """Returns a span in whole minutes, hours or days, as both OpenSLO and Prometheus write it: `5m`, `6h`, `3d`."""
    for seconds, unit in ((86400, "d"), (3600, "h")):
        if span.seconds % seconds == 0:
            return f"{span.seconds // seconds}{unit}"
    return f"{span.seconds // 60}m"


def enum_name(message: Message, field: str) -> str:
    """Returns the name of an enum field's value; empty where it is not stated."""
    kind = message.DESCRIPTOR.fields_by_name[field].enum_type
    assert kind is not None
    value = kind.values_by_number.get(getattr(message, field))
    return "" if value is None or value.number == 0 else value.name


def _wakes(slo: pb.Slo) -> bool:
    """Says whether anybody is woken for a model, as for the alerts that stability sends itself."""
    if slo.tier in (serving_pb2.TIER0, serving_pb2.TIER1):
        return True
    of_second_rank = slo.tier in (serving_pb2.TIER2, serving_pb2.TIER_UNSPECIFIED)
    return of_second_rank and slo.role == registry_pb2.Model.BASELINE
