"""The minimum standard: what it is told of an entry, and how findings, waivers and time go together.

The rules themselves are in `lint_rules.py`. Nothing here asks the ledger: whoever lints says what there is, so that the
cost of linting an entry is known.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, ClassVar, Final, Generic, NamedTuple, TypeVar

from modelfleetd.registry.domain.criticality import TierGrant
from modelfleetd.registry.domain.resource import Tier
from modelfleetd.registry.domain.resources import ModelRole, ModelType, Region, Team
from modelfleetd.registry.domain.waivers import LintWaiver

EXPIRES_SOON: Final = timedelta(days=30)
"""How long before a tier expires its renewal is asked for."""

IDLE: Final = timedelta(days=30)
"""How long a candidate may wait for its launch."""


class Severity(enum.IntEnum):
    """How bad a finding is."""

    INFO = 1
    WARNING = 2
    ERROR = 3


# What lint is told of an entry.


@dataclass(frozen=True, slots=True, kw_only=True)
class TypeFacts:
    """A model type, and what its rules ask of the rest of the ledger."""

    entry: ModelType
    now: datetime
    has_models: bool = False
    # Types that it consumes and that have no baseline.
    idle_upstream: tuple[str, ...] = ()
    has_dashboard: bool = False
    # Of the fleet: regions there are, and whether ids are made by a naming scheme.
    several_regions: bool = False
    naming_in_force: bool = False

    @property
    def waivers(self) -> tuple[LintWaiver, ...]:
        """Rules that it need not keep to."""
        return self.entry.lint_waivers


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelView:
    """What lint looks at of a model: of 100,000 of them, nothing else is taken out of their messages."""

    name: str
    description: str = ""
    role: ModelRole | None = None
    training_flow: str = ""
    checkpoint: str = ""
    tier_override: Tier | None = None
    tier_grant: TierGrant | None = None
    create_time: datetime | None = None
    lint_waivers: tuple[LintWaiver, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """A model, and what its rules ask of the rest of the ledger."""

    entry: ModelView
    now: datetime
    # Of its type.
    tier: Tier | None = None

    @property
    def waivers(self) -> tuple[LintWaiver, ...]:
        """Rules that it need not keep to."""
        return self.entry.lint_waivers


@dataclass(frozen=True, slots=True, kw_only=True)
class TeamFacts:
    """A team, and what its rules ask of the rest of the ledger."""

    entry: Team
    now: datetime
    waivers: ClassVar[tuple[LintWaiver, ...]] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RegionFacts:
    """A region, and what its rules ask of the rest of the ledger."""

    entry: Region
    now: datetime
    waivers: ClassVar[tuple[LintWaiver, ...]] = ()
    several_regions: bool = False


F = TypeVar("F", TypeFacts, ModelFacts, TeamFacts, RegionFacts)


# Rules and findings.


class Fault(NamedTuple):
    """What is wrong, with the names and figures that show it, and how to mend it where the rule's words do not fit."""

    message: str
    mend: str = ""


@dataclass(frozen=True, slots=True)
class Rule(Generic[F]):
    """A rule of the minimum standard, for one kind of entry. Rules of several kinds may have one id."""

    id: str
    severity: Severity
    description: str
    mend: str
    check: Callable[[F], Fault | None]


@dataclass(frozen=True, slots=True)
class Finding:
    """An entry that does not keep to a rule."""

    rule: Rule[Any]
    resource: str
    message: str
    mend: str
    waiver: LintWaiver | None = None
    expired_waiver: LintWaiver | None = None

    @property
    def counts(self) -> bool:
        """Whether it is below the standard: nobody has given leave."""
        return self.waiver is None

    @property
    def order(self) -> tuple[int, str]:
        """Where it comes among the findings of its entry: the worst first."""
        return -self.rule.severity, self.rule.id


def lint(rules: Sequence[Rule[F]], facts: F) -> list[Finding]:
    """Returns the findings of an entry, the worst first, by the rules of its kind. What is waived is among them."""
    entry, now = facts.entry, facts.now
    found = []
    for rule in rules:
        fault = rule.check(facts)
        if fault is not None:
            waiver = next((each for each in facts.waivers if each.rule == rule.id), None)
            expired = waiver if waiver is not None and is_expired(waiver, now) else None
            mend = (fault.mend or rule.mend).replace("{resource}", entry.name)
            valid = None if expired is not None else waiver
            found.append(Finding(rule, entry.name, fault.message, mend, valid, expired))
    return sorted(found, key=lambda finding: finding.order)


def is_expired(waiver: LintWaiver, now: datetime) -> bool:
    """Says whether a waiver has run out."""
    return waiver.expire_time is None or waiver.expire_time <= now


def next_change(entry: ModelType | ModelView, now: datetime) -> datetime | None:
    """Returns when an entry may get other findings although nothing changes; None where it cannot."""
    return min((moment for moment in _moments(entry) if moment > now), default=None)


def _moments(entry: ModelType | ModelView) -> Iterator[datetime]:
    for waiver in entry.lint_waivers:
        if waiver.expire_time is not None:
            yield waiver.expire_time
    if entry.tier_grant is not None and entry.tier_grant.expire_time is not None:
        yield entry.tier_grant.expire_time - EXPIRES_SOON
        yield entry.tier_grant.expire_time
    if isinstance(entry, ModelView) and entry.role is ModelRole.CANDIDATE and entry.create_time is not None:
        yield entry.create_time + IDLE
