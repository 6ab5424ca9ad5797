"""Resource names: how they are built, taken apart and checked. Standard library only.

`modelTypes/feed_ctr/models/v7` is `MODEL.format("feed_ctr", "v7")`, and `MODEL.parse(name)` gives `("feed_ctr", "v7")`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Final

from modelfleetd.errors import invalid

ID: Final = r"[a-z][a-z0-9_-]{0,62}"
NUMBER: Final = r"[1-9][0-9]{0,17}"
WILDCARD: Final = "-"

# Counted rather than chosen: their segments are numbers.
_COUNTED: Final = frozenset({"revision", "attempt"})
# Made of the ids of what they are about: a model type, and a model of it where it is about one alone.
_DOTTED: Final = frozenset({"slo"})
_ID = re.compile(ID)


def _segment(variable: str) -> str:
    if variable in _COUNTED:
        return NUMBER
    return rf"{ID}(?:\.{ID})?" if variable in _DOTTED else ID


class Pattern:
    """The shape of the names of one kind of resource, as in the protos: `modelTypes/{model_type}/models/{model}`."""

    def __init__(self, template: str) -> None:
        self.template = template
        self.variables: tuple[str, ...] = tuple(re.findall(r"{(\w+)}", template))
        self.accepted = re.sub(r"{(\w+)}", lambda m: _segment(m[1]), template)
        self._exact = re.compile(self._regex(wildcard=False))
        self._wild = re.compile(self._regex(wildcard=True))

    def _regex(self, *, wildcard: bool) -> str:
        other = f"|{WILDCARD}" if wildcard else ""
        parts = re.split(r"{(\w+)}", self.template)
        return "".join(
            re.escape(part) if index % 2 == 0 else f"({_segment(part)}{other})" for index, part in enumerate(parts)
        )

    def __repr__(self) -> str:
        return f"Pattern({self.template!r})"

    @property
    def parent(self) -> Pattern | None:
        """The shape of the parent's names; None for a resource without one."""
        parts = self.template.split("/")
        return Pattern("/".join(parts[:-2])) if len(parts) > 2 else None

    def format(self, *ids: str | int) -> str:
        """Returns the name made of these ids. The ids are trusted: whatever comes from outside goes through `parse`."""
        if len(ids) != len(self.variables):
            raise ValueError(f"{self.template} takes {len(self.variables)} ids, got {len(ids)}")
        return self.template.format(**dict(zip(self.variables, ids, strict=True)))

    def match(self, name: str, *, wildcard: bool = False) -> tuple[str, ...] | None:
        """Returns the ids of a name, or None where it is not such a name. With `wildcard` an id may be `-`."""
        found = (self._wild if wildcard else self._exact).fullmatch(name)
        return None if found is None else found.groups()

    def matcher(self, *, wildcard: bool = False) -> Callable[[str], object]:
        """Returns the quickest way to tell such names: something true where it is one."""
        return (self._wild if wildcard else self._exact).fullmatch

    def parse(self, name: str, field: str = "name", *, wildcard: bool = False) -> tuple[str, ...]:
        """Returns the ids of a name.

        Raises:
            InvalidFields: it is not such a name; says which field and what would be accepted.
        """
        ids = self.match(name, wildcard=wildcard)
        if ids is None:
            raise invalid(field, self.expectation)
        return ids

    @property
    def expectation(self) -> str:
        """What would be accepted, for an error message."""
        return f"must be a name of the form {self.template}, matching ^{self.accepted}$"


def check_id(value: str, field: str) -> str:
    """Returns the id if it is one.

    Raises:
        InvalidFields: it is not; says which field and what would be accepted.
    """
    if _ID.fullmatch(value) is None:
        raise invalid(field, ID_EXPECTATION)
    return value


def is_id(value: str) -> bool:
    """Says whether it is an id that a person may choose."""
    return _ID.fullmatch(value) is not None


ID_EXPECTATION: Final = f"must match ^{ID}$, for example 'feed-ranking'"

# Registry.
TEAM: Final = Pattern("teams/{team}")
REGION: Final = Pattern("regions/{region}")
MODEL_TYPE: Final = Pattern("modelTypes/{model_type}")
MODEL: Final = Pattern("modelTypes/{model_type}/models/{model}")
EVALUATION_REPORT: Final = Pattern("modelTypes/{model_type}/models/{model}/evaluationReports/{report}")
RISK_ASSESSMENT: Final = Pattern("modelTypes/{model_type}/models/{model}/riskAssessments/{assessment}")
ASSET: Final = Pattern("assets/{asset}")
EXTENSION_SCHEMA: Final = Pattern("extensionSchemas/{schema}")
NAMING_SCHEME: Final = Pattern("namingSchemes/{scheme}")
CRITICALITY_REQUEST: Final = Pattern("criticalityRequests/{criticality_request}")
REVISION: Final = Pattern("revisions/{revision}")

# Capacity.
FLAVOR: Final = Pattern("flavors/{flavor}")
POOL: Final = Pattern("pools/{pool}")
RESERVATION: Final = Pattern("reservations/{reservation}")
RECORDING: Final = Pattern("recordings/{recording}")
LOAD_TEST: Final = Pattern("loadTests/{load_test}")
CERTIFICATE: Final = Pattern("certificates/{certificate}")
ESTIMATE: Final = Pattern("estimates/{estimate}")
LOAN: Final = Pattern("loans/{loan}")
LAUNCH_POLICY: Final = Pattern("launchPolicies/{launch_policy}")
LAUNCH_DECISION: Final = Pattern("launchDecisions/{launch_decision}")

# Launcher.
LAUNCH: Final = Pattern("launches/{launch}")
ATTEMPT: Final = Pattern("launches/{launch}/attempts/{attempt}")
FREEZE_WINDOW: Final = Pattern("freezeWindows/{window}")
HOLD: Final = Pattern("holds/{hold}")

# Stability.
SLO: Final = Pattern("slos/{slo}")
ALERT: Final = Pattern("alerts/{alert}")
SILENCE: Final = Pattern("silences/{silence}")

# Platform agents.
TARGET: Final = Pattern("targets/{target}")

# By the type that the protos give them (google.api.resource).
BY_TYPE: Final[Mapping[str, Pattern]] = {
    "modelfleet.dev/Team": TEAM,
    "modelfleet.dev/Region": REGION,
    "modelfleet.dev/ModelType": MODEL_TYPE,
    "modelfleet.dev/Model": MODEL,
    "modelfleet.dev/EvaluationReport": EVALUATION_REPORT,
    "modelfleet.dev/RiskAssessment": RISK_ASSESSMENT,
    "modelfleet.dev/Asset": ASSET,
    "modelfleet.dev/ExtensionSchema": EXTENSION_SCHEMA,
    "modelfleet.dev/NamingScheme": NAMING_SCHEME,
    "modelfleet.dev/CriticalityRequest": CRITICALITY_REQUEST,
    "modelfleet.dev/Revision": REVISION,
    "modelfleet.dev/Flavor": FLAVOR,
    "modelfleet.dev/Pool": POOL,
    "modelfleet.dev/Reservation": RESERVATION,
    "modelfleet.dev/Recording": RECORDING,
    "modelfleet.dev/LoadTest": LOAD_TEST,
    "modelfleet.dev/Certificate": CERTIFICATE,
    "modelfleet.dev/Estimate": ESTIMATE,
    "modelfleet.dev/Loan": LOAN,
    "modelfleet.dev/LaunchPolicy": LAUNCH_POLICY,
    "modelfleet.dev/LaunchDecision": LAUNCH_DECISION,
    "modelfleet.dev/Launch": LAUNCH,
    "modelfleet.dev/Attempt": ATTEMPT,
    "modelfleet.dev/FreezeWindow": FREEZE_WINDOW,
    "modelfleet.dev/Hold": HOLD,
    "modelfleet.dev/Slo": SLO,
    "modelfleet.dev/Alert": ALERT,
    "modelfleet.dev/Silence": SILENCE,
    "modelfleet.dev/Target": TARGET,
}
