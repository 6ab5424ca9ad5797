"""Creating and deleting evidence. It is never changed: decisions need to know what there is, and not what it says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from modelfleetd import names
from modelfleetd.errors import EtagMismatch, ReferenceNotFound, ResourceExists, ResourceNotFound, WrongState
from modelfleetd.registry.domain.evidence import EvaluationReport, EvidenceHead, RiskAssessment
from modelfleetd.registry.domain.ledger import Ledger
from modelfleetd.registry.domain.resource import parent_of
from modelfleetd.registry.domain.revisions import Edit, Edits

# Of one model: so that all of it can be judged at once, and deleted in one revision. The history keeps what is deleted.
MAX_PIECES: Final = 500
MAX_TOTAL_BYTES: Final = 32 << 20


def create_evaluation_report(ledger: Ledger, asked: EvaluationReport, uid: str, size: int) -> Edits:
    """Decides CreateEvaluationReport, of a report that was checked.

    Args:
        ledger: with the evidence of its model.
        asked: the report.
        uid: of the report.
        size: of its message, in bytes.
    """
    _expect_room(ledger, asked.name, size)
    if asked.baseline and ledger.model(asked.baseline) is None:
        raise ReferenceNotFound("evaluation_report.baseline", asked.baseline)
    for index, result in enumerate(asked.results):
        for number, comparator in enumerate(result.comparators):
            if comparator.model and ledger.model(comparator.model) is None:
                field = f"evaluation_report.results[{index}].comparators[{number}].model"
                raise ReferenceNotFound(field, comparator.model)
    return (Edit(None, replace(asked, uid=uid)),)


def create_risk_assessment(ledger: Ledger, asked: RiskAssessment, uid: str, size: int) -> Edits:
    """Decides CreateRiskAssessment, of an assessment that was checked; see `create_evaluation_report`."""
    _expect_room(ledger, asked.name, size)
    return (Edit(None, replace(asked, uid=uid)),)


def delete_evidence(ledger: Ledger, name: str, etag: str) -> Edits:
    """Decides DeleteEvaluationReport and DeleteRiskAssessment."""
    for head in ledger.evidence_of(parent_of(name)):
        if head.name == name:
            if etag and etag != head.etag:
                raise EtagMismatch(name, etag, head.etag)
            return deleted([head])
    raise ResourceNotFound(name)


def deleted(heads: Sequence[EvidenceHead]) -> Edits:
    """Returns the edits that delete pieces of evidence: of what they were, their changes hold the name and revision."""
    return tuple(Edit(_outline(head), None) for head in heads)


def _outline(head: EvidenceHead) -> EvaluationReport | RiskAssessment:
    if names.EVALUATION_REPORT.match(head.name) is not None:
        return EvaluationReport(name=head.name, revision=head.revision, etag=head.etag)
    return RiskAssessment(name=head.name, revision=head.revision, etag=head.etag)


def _expect_room(ledger: Ledger, name: str, size: int) -> None:
    """Expects that the model exists, has no such evidence yet, and not too much."""
    model = parent_of(name)
    if ledger.model(model) is None:
        raise ResourceNotFound(model)
    heads = ledger.evidence_of(model)
    if any(head.name == name for head in heads):
        raise ResourceExists(name)
    total = size + sum(head.size for head in heads)
    if len(heads) >= MAX_PIECES or total > MAX_TOTAL_BYTES:
        with_this = f"{len(heads) + 1} pieces and {total / (1 << 20):.1f} MiB with this one"
        state = f"full of evidence: {with_this}, {MAX_PIECES} and {MAX_TOTAL_BYTES >> 20} MiB are the most"
        raise WrongState(model, state, ["to delete old evidence (the history keeps it)"])
