"""Evidence through a real channel and PostgreSQL: what is written is read, listed, judged and deleted, in bounds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from google.protobuf.json_format import ParseDict
from google.protobuf.timestamp_pb2 import Timestamp

from modelfleet.registry.v1 import evidence_pb2
from modelfleet.registry.v1 import registry_pb2 as pb
from modelfleetd.kit.db import Database
from modelfleetd.registry import wire
from modelfleetd.registry.domain.evidence_checks import MAX_BYTES
from modelfleetd.registry.store import evidence
from tests.support import registry_calls
from tests.support.evidence import WRITTEN, message, risks
from tests.support.registry_calls import CTR, NEW, OLD, Registry, populate, refused, request_id

INVALID = grpc.StatusCode.INVALID_ARGUMENT
NOT_FOUND = grpc.StatusCode.NOT_FOUND
PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION
HIGHER = evidence_pb2.EvaluationResult.HIGHER_IS_BETTER
PASS, FAIL, INCONCLUSIVE = evidence_pb2.PASS, evidence_pb2.FAIL, evidence_pb2.INCONCLUSIVE


@pytest.fixture
async def registry(database_url: str) -> AsyncIterator[Registry]:
    async with registry_calls.registry(database_url) as found:
        await populate(found)
        yield found


def at(seconds: int) -> Timestamp:
    return Timestamp(seconds=1_700_000_000 + seconds)


def result(metric: str = "f1", value: float = 0.8, **fields: Any) -> evidence_pb2.EvaluationResult:
    return evidence_pb2.EvaluationResult(metric=metric, value=value, **({"direction": HIGHER} | fields))


def report(*results: evidence_pb2.EvaluationResult, **fields: Any) -> evidence_pb2.EvaluationReport:
    known: dict[str, Any] = {"suite": "eval", "evaluator": {"kind": "INTERNAL"}, "evaluate_time": at(0)}
    return evidence_pb2.EvaluationReport(results=results or (result(),), **(known | fields))


def rule(**fields: Any) -> evidence_pb2.EvidenceRule:
    return evidence_pb2.EvidenceRule(**({"id": "r", "metric": "f1"} | fields))


def padded(size: int) -> evidence_pb2.EvaluationReport:
    """A report of about so many bytes, with few results."""
    conditions = {f"k{number}": "y" * 200 for number in range(20)}
    count = size // (result(conditions=conditions).ByteSize() + 20)
    return report(*(result(slice={"n": str(number)}, conditions=conditions) for number in range(count)))


async def create(registry: Registry, key: str = "r", of: str = NEW, **fields: Any) -> evidence_pb2.EvaluationReport:
    made = fields.pop("made", None) or report(**fields)
    answer: evidence_pb2.EvaluationReport = await registry.CreateEvaluationReport(
        parent=of, report_id=key, evaluation_report=made
    )
    return answer


async def test_every_sort_of_evidence_comes_back_as_it_was_written(registry: Registry) -> None:
    for number, written in enumerate(WRITTEN.values()):
        made = await create(registry, f"r{number:02}", made=message(written))
        assert await registry.GetEvaluationReport(name=made.name, min_revision=made.revision) == made
        assert (made.uid, made.etag) != ("", "") and made.create_time == made.update_time
        for before, after in zip(message(written).results, made.results, strict=True):
            assert (before.metric, before.value, before.slice) == (after.metric, after.value, after.slice)
            assert after.form and (not after.HasField("interval") or after.interval.confidence_basis_points)
    listed = await registry.ListEvaluationReports(parent=NEW)
    assert [each.name.rsplit("/", 1)[1] for each in listed.evaluation_reports] == [
        f"r{number:02}" for number in range(len(WRITTEN))
    ]
    assert listed.revision == (await registry.ListTeams()).revision
    assert not (await registry.ListEvaluationReports(parent=OLD)).evaluation_reports
    assessed = await registry.CreateRiskAssessment(parent=NEW, assessment_id="a", risk_assessment=risks())
    assert [each.residual for each in assessed.risks] == [6, 5]
    assert await registry.GetRiskAssessment(name=assessed.name) == assessed
    assert list((await registry.ListRiskAssessments(parent=NEW)).risk_assessments) == [assessed]


async def test_pages_follow_each_other_and_end_where_a_message_is_full(registry: Registry) -> None:
    large = padded(1_200_000)
    for key in ("a", "b", "c"):
        await create(registry, key, made=large)
    await create(registry, "d")
    found: list[str] = []
    token, pages = "", 0
    while True:
        answer = await registry.ListEvaluationReports(parent=NEW, page_size=2, page_token=token)
        assert answer.ByteSize() < 4 << 20
        found += [each.name.rsplit("/", 1)[1] for each in answer.evaluation_reports]
        token, pages = answer.next_page_token, pages + 1
        if not token:
            break
    assert (found, pages) == (["a", "b", "c", "d"], 2)
    other = registry.ListEvaluationReports(parent=OLD, page_size=2, page_token=await _token(registry))
    await refused(other, INVALID, "INVALID_PAGE_TOKEN")
    await refused(registry.ListEvaluationReports(parent=f"{CTR}/models/nope"), NOT_FOUND, "RESOURCE_NOT_FOUND")
    await refused(registry.ListEvaluationReports(parent="modelTypes/-/models/-"), INVALID, "INVALID_FIELDS")


async def _token(registry: Registry) -> str:
    token: str = (await registry.ListEvaluationReports(parent=NEW, page_size=1)).next_page_token
    return token


async def test_reads_of_evidence_use_the_key(database_url: str, registry: Registry) -> None:
    """Not one of them grows with the fleet or with the evidence of other models."""
    await create(registry)
    database = await Database.open(database_url, "registry")
    try:
        async with database.transaction() as conn:
            await conn.execute("SET LOCAL enable_seqscan = off")
            for query, arguments in (
                (evidence._STATES, ("a", "b", 100)),
                (evidence._HEADS, ([NEW, OLD],)),
            ):
                rows = await conn.fetch(f"EXPLAIN {query}", *arguments)
                plan = "\n".join(row["QUERY PLAN"] for row in rows)
                assert "resources_pkey" in plan and "Seq Scan on resources" not in plan, plan
                assert "Index Cond" in plan, plan
    finally:
        await database.close()


async def test_evidence_is_created_once_and_never_changed(registry: Registry) -> None:
    again = request_id()
    first = await registry.CreateEvaluationReport(
        parent=NEW, report_id="r", evaluation_report=report(), request_id=again
    )
    repeated = await registry.CreateEvaluationReport(
        parent=NEW, report_id="r", evaluation_report=report(), request_id=again
    )
    assert repeated == first
    second = registry.CreateEvaluationReport(parent=NEW, report_id="r", evaluation_report=report())
    await refused(second, grpc.StatusCode.ALREADY_EXISTS, "RESOURCE_EXISTS")
    checked = await registry.CreateEvaluationReport(
        parent=NEW, report_id="other", evaluation_report=report(), validate_only=True
    )
    assert checked.results[0].form == evidence_pb2.EvaluationResult.ABSOLUTE
    assert len((await registry.ListEvaluationReports(parent=NEW)).evaluation_reports) == 1
    call = registry.CreateEvaluationReport(parent=NEW, report_id="r", evaluation_report=report(), validate_only=True)
    await refused(call, grpc.StatusCode.ALREADY_EXISTS, "RESOURCE_EXISTS")


async def test_what_is_wrong_is_told_all_at_once_with_its_path(registry: Registry) -> None:
    bad = report(result(highest=0.5), result(slice={"UPPER": "x"}), expire_time=at(-1))
    found = await refused(
        registry.CreateEvaluationReport(parent=NEW, report_id="r", evaluation_report=bad), INVALID, "INVALID_FIELDS"
    )
    assert set(found.paths) == {
        "evaluation_report.results[0].value",
        "evaluation_report.results[1].slice.UPPER",
        "evaluation_report.expire_time",
    }
    # A value that was left out is not 0: it would pass a maximum.
    silent = evidence_pb2.EvaluationResult(metric="flag_rate", direction=HIGHER)
    silent.interval.high = 1
    found = await refused(
        registry.CreateEvaluationReport(parent=NEW, report_id="r", evaluation_report=report(silent)),
        INVALID,
        "INVALID_FIELDS",
    )
    assert set(found.paths) == {"evaluation_report.results[0].value", "evaluation_report.results[0].interval.low"}
    nobody = registry.CreateEvaluationReport(
        parent=NEW, report_id="r", evaluation_report=report(baseline=f"{CTR}/models/nope")
    )
    assert (await refused(nobody, PRECONDITION, "REFERENCE_NOT_FOUND")).message.startswith("evaluation_report.baseline")
    nowhere = registry.CreateEvaluationReport(parent=f"{CTR}/models/no", report_id="r", evaluation_report=report())
    await refused(nowhere, NOT_FOUND, "RESOURCE_NOT_FOUND")


async def test_a_report_that_is_too_large_is_refused_and_a_large_one_reaches_watchers(registry: Registry) -> None:
    fitting = padded(MAX_BYTES - 100_000)
    assert MAX_BYTES - 200_000 < fitting.ByteSize() < MAX_BYTES
    made = await create(registry, "fits", made=fitting)
    async for response in registry.WatchRevisions(after_revision=made.revision - 1):
        if response.HasField("revision"):
            assert response.revision.changes[0].evaluation_report == made
            assert not response.revision.changes[0].fields
            assert response.ByteSize() < made.ByteSize() + 1000, "what it says travels once"
            break
    call = registry.CreateEvaluationReport(parent=NEW, report_id="large", evaluation_report=padded(MAX_BYTES + 100_000))
    found = await refused(call, INVALID, "INVALID_FIELDS")
    assert "must have at most 2 MiB, it has 2." in found.paths["evaluation_report"]


async def test_a_model_takes_its_evidence_along_in_one_revision(registry: Registry) -> None:
    await create(registry, "a")
    await create(registry, "b")
    await create(registry, "old", of=OLD)
    await registry.CreateRiskAssessment(parent=NEW, assessment_id="a", risk_assessment=risks())
    before = (await registry.ListTeams()).revision
    await registry.DeleteModel(name=NEW, validate_only=True)
    assert (await registry.ListTeams()).revision == before
    await registry.DeleteModel(name=NEW)
    revision = (await registry.ListRevisions(page_size=1)).revisions[0]
    assert revision.number == before + 1
    assert [change.resource.removeprefix(NEW) for change in revision.changes] == [
        "",
        "/evaluationReports/a",
        "/evaluationReports/b",
        "/riskAssessments/a",
    ]
    assert all(change.action == pb.ResourceChange.DELETED and not change.fields for change in revision.changes[1:])
    await refused(registry.GetEvaluationReport(name=f"{NEW}/evaluationReports/a"), NOT_FOUND, "RESOURCE_NOT_FOUND")
    assert (await registry.GetEvaluationReport(name=f"{OLD}/evaluationReports/old")).suite == "eval"
    # What it said stays in the history.
    history = (await registry.ListRevisions(resource=f"{NEW}/evaluationReports/a")).revisions
    assert history[-1].changes[0].evaluation_report.results[0].metric == "f1"


async def test_evidence_is_deleted_by_its_etag_and_may_come_again(registry: Registry) -> None:
    made = await create(registry)
    stale = registry.DeleteEvaluationReport(name=made.name, etag="r1")
    await refused(stale, grpc.StatusCode.ABORTED, "ETAG_MISMATCH")
    await registry.DeleteEvaluationReport(name=made.name, etag=made.etag)
    assert (await create(registry)).uid != made.uid
    assessed = await registry.CreateRiskAssessment(parent=NEW, assessment_id="a", risk_assessment=risks())
    await registry.DeleteRiskAssessment(name=assessed.name)
    await refused(registry.GetRiskAssessment(name=assessed.name), NOT_FOUND, "RESOURCE_NOT_FOUND")


async def test_another_replica_sees_evidence_at_once_and_keeps_none_of_it_in_memory(
    database_url: str, registry: Registry
) -> None:
    async with registry_calls.registry(database_url) as other:
        made = await create(registry)
        assert await other.GetEvaluationReport(name=made.name, min_revision=made.revision) == made
        again = other.CreateEvaluationReport(parent=NEW, report_id="r", evaluation_report=report())
        await refused(again, grpc.StatusCode.ALREADY_EXISTS, "RESOURCE_EXISTS")
        results = await asyncio.gather(
            *(
                each.CreateEvaluationReport(parent=NEW, report_id="raced", evaluation_report=report())
                for each in (registry, other)
            ),
            return_exceptions=True,
        )
        assert sum(isinstance(each, grpc.aio.AioRpcError) for each in results) == 1
        await other.DeleteModel(name=NEW)
        await refused(registry.GetModel(name=NEW, min_revision=made.revision + 2), NOT_FOUND, "RESOURCE_NOT_FOUND")
    assert not any(kind.in_memory for kind in wire.KINDS if "evidence" in str(kind.message))


async def test_evidence_is_read_as_of_the_past_and_filtered(registry: Registry) -> None:
    first = await create(registry, "a", made=report(result("auc")))
    await create(registry, "b", made=report(suite="other"))
    await registry.DeleteEvaluationReport(name=first.name)
    found = await registry.ListEvaluationReports(parent=NEW, as_of_revision=first.revision)
    assert list(found.evaluation_reports) == [first]
    assert await registry.GetEvaluationReport(name=first.name, as_of_revision=first.revision) == first
    for asked, expected in (('suite = "other"', ["b"]), ("results.metric:auc", []), ("NOT suite = other", [])):
        found = await registry.ListEvaluationReports(parent=NEW, filter=asked)
        assert [each.name.rsplit("/", 1)[1] for each in found.evaluation_reports] == expected, asked


async def test_entries_that_are_applied_together_take_the_evidence_of_deleted_models_along(registry: Registry) -> None:
    made = await create(registry)
    changes = [pb.EntryChange(delete=NEW, etag=(await registry.GetModel(name=NEW)).etag)]
    checked = await registry.ApplyEntries(changes=changes, validate_only=True)
    assert [change.resource for change in checked.changes] == [NEW, made.name]
    applied = await registry.ApplyEntries(changes=changes)
    assert [change.resource for change in applied.changes] == [NEW, made.name]
    await refused(registry.GetEvaluationReport(name=made.name), NOT_FOUND, "RESOURCE_NOT_FOUND")


async def test_writes_that_are_decided_together_know_of_each_other(registry: Registry) -> None:
    """As many calls at once as are committed together: one report each name, and the model goes with all of them."""

    async def outcome(call: Any) -> str:
        try:
            await call
        except grpc.aio.AioRpcError as error:
            return error.code().name
        return "OK"

    found = await asyncio.gather(*(outcome(create(registry, f"r{number % 4}")) for number in range(12)))
    assert sorted(found) == ["ALREADY_EXISTS"] * 8 + ["OK"] * 4
    late = [outcome(create(registry, f"late{number}")) for number in range(6)]
    deleted, *others = await asyncio.gather(outcome(registry.DeleteModel(name=NEW)), *late)
    assert deleted == "OK" and set(others) <= {"OK", "NOT_FOUND"}
    revision = (await registry.ListRevisions(resource=NEW, page_size=1)).revisions[0]
    assert len(revision.changes) == 1 + 4 + others.count("OK")
    for key in ("r0", *(f"late{number}" for number in range(6))):
        await refused(
            registry.GetEvaluationReport(name=f"{NEW}/evaluationReports/{key}"), NOT_FOUND, "RESOURCE_NOT_FOUND"
        )


async def test_a_model_is_judged_by_the_rules_of_its_type(registry: Registry) -> None:
    rules = [
        rule(id="good_enough", minimum=0.7),
        rule(id="no_worse", max_loss_to_baseline=0.0),
        evidence_pb2.EvidenceRule(id="risks", max_residual_risk=6, dimension="fairness"),
    ]
    await registry.UpdateModelType(model_type=pb.ModelType(name=CTR, evidence_rules=rules))
    silence = await registry.EvaluateEvidence(model=NEW)
    assert silence.verdict == INCONCLUSIVE
    assert [each.lack for each in silence.judgements] == [evidence_pb2.RuleJudgement.MISSING] * 3
    await create(registry)
    await create(registry, of=OLD, made=report(result(value=0.85)))
    lasting = risks()
    lasting.ClearField("expire_time")
    await registry.CreateRiskAssessment(parent=NEW, assessment_id="a", risk_assessment=lasting)
    worse = await registry.EvaluateEvidence(model=NEW)
    assert worse.verdict == FAIL
    assert [each.verdict for each in worse.judgements] == [PASS, FAIL, PASS]
    row = worse.judgements[1].rows[0]
    assert (row.source, row.index, row.baseline, row.bound) == (f"{NEW}/evaluationReports/r", 0, 0.85, 0.0)
    assert row.judged == pytest.approx(0.05)
    assert "0.05 worse than the baseline's 0.85" in worse.judgements[1].explanation
    await create(registry, "s", made=report(result(value=0.9), evaluate_time=at(5)))
    better = await registry.EvaluateEvidence(model=NEW)
    assert (better.verdict, better.explanation) == (PASS, "All 3 rules pass.")
    assert better.revision > worse.revision
    # Against another one, by other rules.
    asked = await registry.EvaluateEvidence(model=OLD, baseline=NEW, rules=[rule(max_relative_loss_to_baseline=0.05)])
    assert (asked.verdict, asked.judgements[0].rows[0].baseline) == (FAIL, 0.9)


async def test_without_rules_there_is_nothing_to_ask_and_without_a_baseline_nothing_to_compare(
    registry: Registry,
) -> None:
    assert (await registry.EvaluateEvidence(model=NEW)).explanation.startswith("No rules")
    await registry.CreateModelType(model_type_id="fresh", model_type=pb.ModelType(team="teams/feed"))
    fresh = await registry.CreateModel(
        parent="modelTypes/fresh", model_id="m", model=pb.Model(serving_spec=registry_calls.spec())
    )
    await create(registry, of=fresh.name)
    found = await registry.EvaluateEvidence(
        model=fresh.name, rules=[rule(max_loss_to_baseline=0.1), rule(id="x", minimum=0.5)]
    )
    assert found.verdict == INCONCLUSIVE
    assert [each.lack for each in found.judgements] == [evidence_pb2.RuleJudgement.NO_BASELINE, 0]
    await refused(registry.EvaluateEvidence(model=f"{CTR}/models/no"), NOT_FOUND, "RESOURCE_NOT_FOUND")
    await refused(registry.EvaluateEvidence(model=NEW, baseline=f"{CTR}/models/no"), NOT_FOUND, "RESOURCE_NOT_FOUND")
    bad = await refused(registry.EvaluateEvidence(model=NEW, rules=[rule()]), INVALID, "INVALID_FIELDS")
    assert "must expect exactly one of minimum" in bad.paths["rules[0]"]


async def test_rules_that_make_no_sense_are_refused_with_their_model_type(registry: Registry) -> None:
    wrong = pb.ModelType(name=CTR, evidence_rules=[rule(), rule(minimum=1, worst_slice_by="k", slice={"a": "b"})])
    found = await refused(registry.UpdateModelType(model_type=wrong), INVALID, "INVALID_FIELDS")
    assert set(found.paths) == {
        "model_type.evidence_rules[0]",
        "model_type.evidence_rules[1].id",
        "model_type.evidence_rules[1].worst_slice_by",
    }
    zero = await registry.UpdateModelType(
        model_type=pb.ModelType(name=CTR, evidence_rules=[rule(max_loss_to_baseline=0.0)])
    )
    assert zero.evidence_rules[0].HasField("max_loss_to_baseline")
    change = (await registry.ListRevisions(resource=CTR, page_size=1)).revisions[0].changes[0]
    assert "max_loss_to_baseline" in str(change.fields[0].after), "zero is a bound, and the diff says so"


async def test_many_reports_are_judged_whatever_their_size(registry: Registry) -> None:
    """All evidence of a model is looked at, page by page, and only what rules are about is kept."""
    for number in range(4):
        made = padded(1_200_000)
        made.evaluate_time.CopyFrom(at(number))
        made.results.append(result("wanted", number / 10))
        await create(registry, f"r{number}", made=made)
    found = await registry.EvaluateEvidence(model=NEW, rules=[rule(metric="wanted", minimum=0.3)])
    row = found.judgements[0].rows[0]
    assert (found.verdict, row.source) == (PASS, f"{NEW}/evaluationReports/r3")
    assert row.index == len(padded(1_200_000).results)


def test_the_message_of_a_report_is_what_a_file_says() -> None:
    written = ParseDict({"suite": "x", "results": [{"metric": "f1", "value": 0}]}, evidence_pb2.EvaluationReport())
    assert written.results[0].HasField("value")
