"""The minimum standard, the fleet report, and what really serves beside the ledger."""

from __future__ import annotations

from typing import Final

from modelfleet.registry.v1 import registry_pb2, standard_pb2
from modelfleetd import names
from modelfleetd.errors import ResourceNotFound, invalid
from modelfleetd.kit import paging
from modelfleetd.kit.codec import to_proto
from modelfleetd.registry.api.base import Base, Context
from modelfleetd.registry.domain.inventory import STALE_AFTER, InventoryFinding
from modelfleetd.registry.domain.lint import Finding
from modelfleetd.registry.domain.lint_rules import kinds_of_rules
from modelfleetd.registry.inventory import ROUTES_AT_A_TIME, Reports, Survey
from modelfleetd.registry.snapshot import Snapshot, type_of
from modelfleetd.registry.standard import Inspector, Scope, entries_from, surface_of

# How much a page looks at, whatever the size of the fleet: a dozen milliseconds. A type costs as much as ten models.
_MOST_COST: Final = 300
_TYPE_COST: Final = 10
_MAX_GROUPS: Final = 1000
_LINTED: Final = (names.TEAM, names.REGION, names.MODEL_TYPE, names.MODEL)
# Before all findings of an entry: the order of each begins with a severity, negative.
_FIRST: Final = (-100, "")


class Standard(Base):
    """The minimum standard, the fleet report, and what really serves beside the ledger."""

    async def ListLintRules(
        self, request: standard_pb2.ListLintRulesRequest, context: Context
    ) -> standard_pb2.ListLintRulesResponse:
        rules = [
            standard_pb2.LintRule(
                id=rule.id,
                severity=standard_pb2.Severity.Value(rule.severity.name),
                description=rule.description,
                mend=rule.mend,
                applies_to=kinds,
            )
            for rule, kinds in kinds_of_rules().values()
        ]
        return standard_pb2.ListLintRulesResponse(rules=rules)

    async def LintEntries(
        self, request: standard_pb2.LintEntriesRequest, context: Context
    ) -> standard_pb2.LintEntriesResponse:
        page = paging.read(request, str, int, str)
        snapshot = await self._at(request.min_revision)
        scope = Scope(request.resource, request.team, request.surface)
        _expect_scope(snapshot, scope)
        start, severity, rule = page.position or ("", *_FIRST)
        after = (int(severity), str(rule))
        inspector = Inspector(snapshot, self._clock.now())
        found: list[Finding] = []
        position: paging.Position | None = None
        cost = 0
        for name in entries_from(snapshot, scope, str(start)):
            if len(found) > page.size or cost >= _MOST_COST:
                position = (name, *_FIRST)
                break
            is_admitted = _admitted(snapshot, scope, name)
            cost += _TYPE_COST if is_admitted and name in snapshot.model_types else 1
            if is_admitted:
                of_entry = (each for each in inspector.findings(name) if _wanted(each, request))
                found += (each for each in of_entry if name != start or each.order > after)
        shown, token = page.answer(
            found, lambda each: (each.resource, *each.order), lambda each: _finding(snapshot, each)
        )
        if not token and position is not None:
            token = paging.encode(page.scope, position)
        return standard_pb2.LintEntriesResponse(findings=shown, next_page_token=token, revision=snapshot.revision)

    async def GetFleetReport(
        self, request: standard_pb2.GetFleetReportRequest, context: Context
    ) -> standard_pb2.GetFleetReportResponse:
        snapshot = await self._at(request.min_revision)
        revision = snapshot.revision
        observed = await self._store.observed_since(self._clock.now() - STALE_AFTER)
        total, groups = await self._standings.report(request.group_by, observed)
        return standard_pb2.GetFleetReportResponse(
            total=to_proto(total, standard_pb2.FleetReportRow),
            groups=[to_proto(row, standard_pb2.FleetReportRow) for row in groups[:_MAX_GROUPS]],
            revision=revision,
        )

    async def ListInventoryFindings(
        self, request: standard_pb2.ListInventoryFindingsRequest, context: Context
    ) -> standard_pb2.ListInventoryFindingsResponse:
        page = paging.read(request, str, str, str, int)
        model_type, region, model, passed = page.position or (request.model_type, "", "", 0)
        start = (str(model_type), str(region))
        statuses = await self._store.routes_after(start, ROUTES_AT_A_TIME + 1, request.model_type)
        snapshot = self._follower.snapshot
        survey = Survey(snapshot, Reports.of(statuses), self._clock.now())
        routes, following = survey.routes(start, request.model_type, request.region)
        found: list[InventoryFinding] = []
        for route in routes:
            if len(found) > page.size:
                break
            done = str(model) if passed and route == start else None
            found += (each for each in survey.findings(route) if done is None or each.model > done)
        shown, token = page.answer(
            found,
            lambda each: (each.model_type, each.region, each.model, 1),
            lambda each: to_proto(each, standard_pb2.InventoryFinding),
        )
        if not token and following is not None:
            token = paging.encode(page.scope, (*following, "", 0))
        return standard_pb2.ListInventoryFindingsResponse(
            findings=shown, next_page_token=token, revision=snapshot.revision
        )


def _expect_scope(snapshot: Snapshot, scope: Scope) -> None:
    """Raises InvalidFields or ResourceNotFound where a scope names nothing that can be linted."""
    if scope.resource and not any(pattern.match(scope.resource) for pattern in _LINTED):
        accepted = ", ".join(pattern.template for pattern in _LINTED)
        raise invalid("resource", f"must be empty or a name of the form {accepted}")
    for name in (scope.resource, scope.team):
        if name and snapshot.find(name) is None:
            raise ResourceNotFound(name)


def _admitted(snapshot: Snapshot, scope: Scope, name: str) -> bool:
    model_type = snapshot.model_types.get(type_of(name))
    return model_type is None or scope.admits(model_type)


def _wanted(finding: Finding, request: standard_pb2.LintEntriesRequest) -> bool:
    return finding.rule.severity >= request.min_severity and (finding.counts or request.show_waived)


def _finding(snapshot: Snapshot, finding: Finding) -> standard_pb2.LintFinding:
    model_type = snapshot.model_types.get(type_of(finding.resource)) or registry_pb2.ModelType()
    made = standard_pb2.LintFinding(
        rule=finding.rule.id,
        severity=standard_pb2.Severity.Value(finding.rule.severity.name),
        resource=finding.resource,
        team=finding.resource if finding.resource in snapshot.teams else model_type.team,
        surface=surface_of(model_type),
        message=finding.message,
        mend=finding.mend,
    )
    if finding.waiver is not None:
        made.waiver.CopyFrom(to_proto(finding.waiver, standard_pb2.LintWaiver))
    if finding.expired_waiver is not None:
        made.expired_waiver.CopyFrom(to_proto(finding.expired_waiver, standard_pb2.LintWaiver))
    return made
