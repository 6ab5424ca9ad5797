"""What an approval is bound to: not the steps, which may change with what is free, but everything that people judge."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any

from modelfleetd.launcher.domain.plan import Plan
from modelfleetd.launcher.domain.policy import Policy

# Who approved where the policy asks nobody.
BY_POLICY = "policy"


@dataclass(frozen=True, slots=True)
class EnvelopeUnits:
    """Most units of one flavor in one region."""

    flavor: str
    region: str
    units: int


@dataclass(frozen=True, slots=True)
class Envelope:
    """What was or is to be approved."""

    candidate: str
    serving_spec_digest: str
    baseline: str
    strategy: str
    target_share_basis_points: int
    regions: tuple[str, ...]
    max_units: tuple[EnvelopeUnits, ...]
    max_cost: float
    max_duration: timedelta
    policy_digest: str
    approved_by: str = ""
    approve_time: datetime | None = None
    holdout_share_basis_points: int = 0

    @property
    def digest(self) -> str:
        """SHA-256 over everything but the approval itself, as "sha256:<hex>"."""
        content = asdict(self)
        del content["approved_by"], content["approve_time"]
        return _digest(content)


def of_plan(
    plan: Plan,
    policy: Policy,
    *,
    candidate: str,
    serving_spec_digest: str,
    baseline: str,
    strategy: str,
    holdout: int = 0,
) -> Envelope:
    """The envelope that a plan and the policy in force make. `holdout` is the share that the old baseline keeps."""
    return Envelope(
        candidate=candidate,
        serving_spec_digest=serving_spec_digest,
        baseline=baseline,
        strategy=strategy,
        target_share_basis_points=max(region.share_at_end(candidate) for region in plan.regions),
        holdout_share_basis_points=holdout,
        # Who comes first may change with the traffic; that alone asks nobody again.
        regions=tuple(sorted(region.region for region in plan.regions)),
        max_units=tuple(
            EnvelopeUnits(hold.flavor, region.region, hold.hold_units)
            for region in plan.regions
            for hold in region.holds
        ),
        max_cost=plan.cost_peak,
        max_duration=policy.launch_deadline,
        policy_digest=_digest(asdict(policy)),
    )


def within(inner: Envelope, outer: Envelope) -> bool:
    """Whether what one envelope allows is allowed by another one, so that its approval covers it."""
    allowed = {(units.flavor, units.region): units.units for units in outer.max_units}
    return (
        _identity(inner) == _identity(outer)
        and all(units.units <= allowed.get((units.flavor, units.region), 0) for units in inner.max_units)
        and inner.max_cost <= outer.max_cost
        and inner.max_duration <= outer.max_duration
    )


def _identity(envelope: Envelope) -> tuple[object, ...]:
    return (
        envelope.candidate,
        envelope.serving_spec_digest,
        envelope.baseline,
        envelope.strategy,
        envelope.target_share_basis_points,
        envelope.holdout_share_basis_points,
        tuple(sorted(envelope.regions)),
        envelope.policy_digest,
    )


def _digest(content: dict[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, default=_plain)
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def _plain(value: Any) -> Any:
    return value.total_seconds() if isinstance(value, timedelta) else getattr(value, "name", str(value))
