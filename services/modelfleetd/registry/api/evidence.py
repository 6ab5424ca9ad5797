"""Evaluation reports, risk assessments, and verdicts on them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, TypeVar

from google.protobuf.empty_pb2 import Empty

from modelfleet.registry.v1 import evidence_pb2
from modelfleetd import names
from modelfleetd.errors import ResourceNotFound, invalid
from modelfleetd.kit import paging
from modelfleetd.kit.codec import from_proto, to_proto
from modelfleetd.registry import wire
from modelfleetd.registry.api.base import Base, Context, author, new_uid
from modelfleetd.registry.batch import Decide
from modelfleetd.registry.domain import evidence_entries
from modelfleetd.registry.domain.evidence import EvaluationReport, EvidenceRule, RiskAssessment
from modelfleetd.registry.domain.evidence_checks import MAX_BYTES, check_assessment, check_report
from modelfleetd.registry.domain.evidence_rules import compares, judge
from modelfleetd.registry.domain.evidence_verdicts import Evidence as Known
from modelfleetd.registry.domain.ledger import Ledger
from modelfleetd.registry.domain.resource import parent_of
from modelfleetd.registry.domain.resources import ModelType
from modelfleetd.registry.domain.revisions import Edits
from modelfleetd.registry.domain.rules import check_evidence_rules
from modelfleetd.registry.domain.violations import Violations

# Of usual size: writes that are decided together are no more than some of them.
_BYTES_OF_AN_ENTRY = 32 * 1024

M = TypeVar("M", evidence_pb2.EvaluationReport, evidence_pb2.RiskAssessment)


class Evidence(Base):
    """Evaluation reports, risk assessments, and verdicts on them: read from the database, since there may be much."""

    # Evaluation reports.

    async def GetEvaluationReport(
        self, request: evidence_pb2.GetEvaluationReportRequest, context: Context
    ) -> evidence_pb2.EvaluationReport:
        return await self._get(request, evidence_pb2.EvaluationReport)

    async def ListEvaluationReports(
        self, request: evidence_pb2.ListEvaluationReportsRequest, context: Context
    ) -> evidence_pb2.ListEvaluationReportsResponse:
        found, token, revision = await self._list_evidence(request, evidence_pb2.EvaluationReport)
        return evidence_pb2.ListEvaluationReportsResponse(
            evaluation_reports=found, next_page_token=token, revision=revision
        )

    async def CreateEvaluationReport(
        self, request: evidence_pb2.CreateEvaluationReportRequest, context: Context
    ) -> evidence_pb2.EvaluationReport:
        ids = names.MODEL.parse(request.parent, "parent")
        name = names.EVALUATION_REPORT.format(*ids, names.check_id(request.report_id, "report_id"))
        now, uid = self._clock.now(), new_uid()

        def read() -> tuple[EvaluationReport, int]:
            report = check_report(from_proto(request.evaluation_report, EvaluationReport, name=name), now)
            return report, _size(report, "evaluation_report")

        # Thousands of results take a while; nobody else waits for that.
        report, size = await asyncio.to_thread(read)

        def decide(ledger: Ledger) -> Edits:
            return evidence_entries.create_evaluation_report(ledger, report, uid, size)

        return await self._create_evidence(request, evidence_pb2.EvaluationReport, decide, name, size)

    async def DeleteEvaluationReport(
        self, request: evidence_pb2.DeleteEvaluationReportRequest, context: Context
    ) -> Empty:
        names.EVALUATION_REPORT.parse(request.name)
        return await self._delete_evidence(request)

    # Risk assessments.

    async def GetRiskAssessment(
        self, request: evidence_pb2.GetRiskAssessmentRequest, context: Context
    ) -> evidence_pb2.RiskAssessment:
        return await self._get(request, evidence_pb2.RiskAssessment)

    async def ListRiskAssessments(
        self, request: evidence_pb2.ListRiskAssessmentsRequest, context: Context
    ) -> evidence_pb2.ListRiskAssessmentsResponse:
        found, token, revision = await self._list_evidence(request, evidence_pb2.RiskAssessment)
        return evidence_pb2.ListRiskAssessmentsResponse(
            risk_assessments=found, next_page_token=token, revision=revision
        )

    async def CreateRiskAssessment(
        self, request: evidence_pb2.CreateRiskAssessmentRequest, context: Context
    ) -> evidence_pb2.RiskAssessment:
        ids = names.MODEL.parse(request.parent, "parent")
        name = names.RISK_ASSESSMENT.format(*ids, names.check_id(request.assessment_id, "assessment_id"))
        asked = from_proto(request.risk_assessment, RiskAssessment, name=name)
        assessment, uid = check_assessment(asked, self._clock.now()), new_uid()
        size = _size(assessment, "risk_assessment")

        def decide(ledger: Ledger) -> Edits:
            return evidence_entries.create_risk_assessment(ledger, assessment, uid, size)

        return await self._create_evidence(request, evidence_pb2.RiskAssessment, decide, name, size)

    async def DeleteRiskAssessment(self, request: evidence_pb2.DeleteRiskAssessmentRequest, context: Context) -> Empty:
        names.RISK_ASSESSMENT.parse(request.name)
        return await self._delete_evidence(request)

    # Verdicts.

    async def EvaluateEvidence(
        self, request: evidence_pb2.EvaluateEvidenceRequest, context: Context
    ) -> evidence_pb2.EvaluateEvidenceResponse:
        names.MODEL.parse(request.model, "model")
        given = [from_proto(rule, EvidenceRule) for rule in request.rules]
        wrong = Violations("")
        check_evidence_rules(wrong, given, "rules")
        wrong.raise_if_any()
        snapshot = await self._at(request.min_revision)
        for name in filter(None, (request.model, request.baseline)):
            if name not in snapshot.models:
                raise ResourceNotFound(name)
        model_type = from_proto(snapshot.model_types[parent_of(request.model)], ModelType)
        rules = given or model_type.evidence_rules
        baseline = request.baseline or model_type.baseline
        compared = baseline if any(map(compares, rules)) else ""
        known = {name: wire.EvidenceReader(rules) for name in (request.model, compared) if name}
        async for model, kind, state in self._store.evidence.states(list(known), paging.MAX_BYTES):
            known[model].read(kind, state)
        baselines = known[compared].evidence if compared else Known()
        opinion = judge(rules, known[request.model].evidence, compared, baselines, self._clock.now())
        answer = to_proto(opinion, evidence_pb2.EvaluateEvidenceResponse)
        answer.revision = snapshot.revision
        return answer

    # Both kinds alike.

    async def _list_evidence(self, request: Any, kind: type[M]) -> tuple[Sequence[M], str, int]:
        # Of one model only: that bounds what a page may have to read.
        names.MODEL.parse(request.parent, "parent")
        return await self._list(request, kind)

    async def _create_evidence(self, request: Any, kind: type[M], decide: Decide, name: str, size: int) -> M:
        return await self._writer.change(
            request,
            kind,
            name,
            author(request),
            decide,
            evidence_of=[request.parent],
            weight=1 + size // _BYTES_OF_AN_ENTRY,
        )

    async def _delete_evidence(self, request: Any) -> Empty:
        def decide(ledger: Ledger) -> Edits:
            return evidence_entries.delete_evidence(ledger, request.name, request.etag)

        return await self._writer.change(
            request, Empty, request.name, author(request), decide, evidence_of=[parent_of(request.name)]
        )


def _size(evidence: EvaluationReport | RiskAssessment, field: str) -> int:
    """Returns the bytes of a piece of evidence as it is stored. Raises InvalidFields: it has too many."""
    size = wire.size_of(evidence)
    if size > MAX_BYTES:
        most = f"must have at most {MAX_BYTES >> 20} MiB, it has {size / (1 << 20):.1f}; split it by suite or slice"
        raise invalid(field, most)
    return size
