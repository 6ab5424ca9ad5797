"""`modelfleet evidence` as a user types it, against a real registry."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from modelfleet.common.v1 import serving_pb2
from modelfleet.registry.v1 import registry_pb2 as pb
from tests.api.test_cli import Run, runner
from tests.support.evidence import RISKS, WRITTEN
from tests.support.fleet import fleet


@pytest.fixture
async def cli(
    database_url: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Run]:
    """Runs a command line in an empty folder, against a registry with the models ctr/old (the baseline) and ctr/new."""
    monkeypatch.chdir(tmp_path)
    async with fleet(database_url, ["registry"]) as running:
        async with running.client() as client:
            await client.registry.create_team(team_id="feed", team=pb.Team())
            await client.registry.create_model_type(model_type_id="ctr", model_type=pb.ModelType(team="teams/feed"))
            spec = serving_pb2.ServingSpec(command=["serve"], flavor="flavors/cpu")
            for key in ("old", "new"):
                await client.registry.create_model(
                    parent="modelTypes/ctr", model_id=key, model=pb.Model(serving_spec=spec)
                )
            await client.registry.adopt_serving(
                model_type="modelTypes/ctr",
                role_changes=[pb.RoleChange(model="modelTypes/ctr/models/old", role=pb.Model.BASELINE)],
            )
        yield runner(running, "registry", capsys)


def write(name: str, data: Any) -> str:
    path = Path(name)
    path.write_text(data if isinstance(data, str) else yaml.safe_dump(data, sort_keys=False), encoding="utf-8")
    return name


async def test_every_sort_of_report_goes_through_files_and_back(cli: Run) -> None:
    for number, written in enumerate(WRITTEN.values()):
        key = f"r{number:02}"
        added = await cli("evidence", "add", "ctr/new", "-f", write("report.yaml", written), "--id", key)
        assert added.status == 0, added.err
        assert f"added modelTypes/ctr/models/new/evaluationReports/{key}: " in added.out
        assert "modelfleet evidence check ctr/new" in added.out
        shown = await cli("evidence", "show", "ctr/new", key, "-o", "yaml")
        data = yaml.safe_load(shown.out)
        for field in written.keys() - {"results"}:
            assert data[field] == written[field]
        # What `show` prints may be added again.
        again = await cli("evidence", "add", "ctr/old", "-f", write("again.yaml", shown.out), "--id", key)
        assert again.status == 0, again.err
        table = await cli("evidence", "show", "ctr/new", key)
        for result in written["results"]:
            assert result["metric"] in table.out and f"{result['value']:.6g}" in table.out
    listed = json.loads((await cli("evidence", "list", "ctr/new", "-o", "json")).out)
    assert len(listed) == len(WRITTEN)
    assert "red_team" in (await cli("evidence", "list", "ctr/new")).out
    fitting = await cli("evidence", "list", "ctr/new", "--filter", "suite = red_team", "-o", "json")
    assert [each["suite"] for each in json.loads(fitting.out)] == ["red_team"]


async def test_risks_are_added_listed_shown_and_deleted(cli: Run) -> None:
    assert "No risk assessments yet" in (await cli("evidence", "risk", "list", "ctr/new")).out
    assert (await cli("evidence", "risk", "show", "ctr/new")).status == 1
    added = await cli("evidence", "risk", "add", "ctr/new", "-f", write("risks.yaml", RISKS))
    key = "risks-20250530t080000"
    assert f"riskAssessments/{key}: 2 risks, the highest residual one is 6 of 25." in added.out
    shown = (await cli("evidence", "risk", "show", "ctr/new")).out
    assert "2 × 3 = 6" in shown and "4 × 3 = 12" in shown and "exploration budget" in shown
    assert shown.index("2 × 3 = 6") < shown.index("1 × 5 = 5"), "the highest first"
    again = (await cli("evidence", "risk", "show", "ctr/new", key, "-o", "yaml")).out
    assert (await cli("evidence", "risk", "add", "ctr/old", "-f", write("again.yaml", again))).status == 0
    assert "6 of 25" in (await cli("evidence", "risk", "list", "ctr/new")).out
    assert (await cli("evidence", "risk", "delete", "ctr/new", key)).out.startswith("deleted ")
    assert "No risk assessments yet" in (await cli("evidence", "risk", "list", "ctr/new")).out


REPORT = """
suite: eval
evaluator: {kind: INTERNAL}
evaluate_time: 2025-05-30T08:00:00Z   # without quotes: a time for YAML
results:
- {metric: auc, value: 0.80, direction: HIGHER_IS_BETTER}
"""


async def test_a_model_is_checked_with_figures_and_an_exit_status(cli: Run) -> None:
    rules = write(
        "rules.yaml",
        "- {id: good, metric: auc, minimum: 0.7}\n- {id: no_worse, metric: auc, max_loss_to_baseline: 0}\n",
    )
    nothing = await cli("evidence", "check", "ctr/new", "--rules", rules)
    assert nothing.status == 1 and "INCONCLUSIVE: Of 2 rules it lacks evidence for good, no_worse." in nothing.out
    await cli("evidence", "add", "ctr/new", "-f", write("r.yaml", REPORT))
    await cli("evidence", "add", "ctr/old", "-f", write("r.yaml", REPORT), "--set", "suite=eval")
    passed = await cli("evidence", "check", "ctr/new", "--rules", rules)
    assert passed.status == 0 and passed.out.endswith("PASS: All 2 rules pass.\n")
    await cli("evidence", "add", "ctr/old", "-f", write("r.yaml", REPORT.replace("0.80", "0.85")), "--id", "newer")
    failed = await cli("evidence", "check", "ctr/new", "--rules", rules)
    assert failed.status == 1
    assert "0.05 worse than the baseline's 0.85; at most 0 worse is accepted." in failed.out
    against = await cli("evidence", "check", "ctr/new", "--rules", rules, "--baseline", "new", "-o", "json")
    assert against.status == 0 and json.loads(against.out)["verdict"] == "PASS"
    # By the rules of the model type, as they stand in its file.
    kind = write("type.yaml", {"evidence_rules": [{"id": "good", "metric": "auc", "minimum": 0.9}]})
    assert (await cli("registry", "type", "update", "ctr", "-f", kind)).status == 0
    own = await cli("evidence", "check", "ctr/new")
    assert own.status == 1 and "auc is 0.8; at least 0.9 is expected." in own.out
    assert (await cli("evidence", "check", "ctr/new", "--rules", kind)).out == own.out


async def test_a_dry_run_shows_the_report_and_writes_nothing(cli: Run) -> None:
    shown = await cli("evidence", "add", "ctr/new", "-f", write("r.yaml", REPORT), "--dry-run")
    assert yaml.safe_load(shown.out)["results"][0]["form"] == "ABSOLUTE"
    assert "No evaluation reports yet" in (await cli("evidence", "list", "ctr/new")).out


async def test_fmevals_output_becomes_a_report(cli: Run) -> None:
    samples = [
        {"category": c, "scores": [{"name": "f1_score", "value": v}]} for c, v in (("a", 0.5), ("a", 1), ("b", 0))
    ]
    write("qa_accuracy_boolq.jsonl", "".join(json.dumps(each) + "\n" for each in samples))
    summary: dict[str, Any] = {"eval_name": "qa_accuracy", "dataset_name": "boolq", "prompt_template": "$model_input"}
    summary |= {"dataset_scores": [{"name": "f1_score", "value": 0.5}, {"name": "exact_match_score", "value": 1 / 3}]}
    write("summary.json", json.dumps([summary]))
    command = ["evidence", "import", "fmeval", "ctr/new", "summary.json", "qa_accuracy_boolq.jsonl"]
    given = ["--evaluated", "2025-05-30T08:00Z", "--expires-in", "90d", "--baseline", "old", "--evaluator", "PUBLIC"]
    dry = yaml.safe_load((await cli(*command, *given, "--dry-run")).out)
    assert (dry["evaluate_time"], dry["expire_time"]) == ("2025-05-30T08:00:00Z", "2025-08-28T08:00:00Z")
    assert (dry["baseline"], dry["evaluator"]) == ("modelTypes/ctr/models/old", {"kind": "PUBLIC", "name": "FMEval"})
    done = await cli(*command, *given)
    assert "evaluationReports/fmeval-20250530t080000: 4 results" in done.out, done.err
    shown = (await cli("evidence", "show", "ctr/new")).out
    assert "category=a" in shown and "0.75" in shown and "boolq" in shown
    unknown = await cli(
        "evidence", "import", "fmeval", "ctr/new", write("x.jsonl", '{"scores": [{"name": "q", "value": 1}]}')
    )
    assert unknown.status == 1 and "--direction q=HIGHER_IS_BETTER" in unknown.err


async def test_a_table_becomes_a_report_by_a_mapping(cli: Run) -> None:
    write("t.csv", "metric,value,country\nauc,0.8,\nauc,0.7,de\n")
    mapping: dict[str, Any] = {
        "suite": "offline",
        "results": {
            "metric": {"column": "metric"},
            "value": {"column": "value"},
            "slice": {"country": {"column": "country"}},
            "direction": "HIGHER_IS_BETTER",
        },
    }
    done = await cli(
        "evidence", "import", "mapped", "ctr/new", "t.csv", "--mapping", write("m.yaml", mapping), "--id", "x"
    )
    assert "evaluationReports/x: 2 results" in done.out, done.err
    data = yaml.safe_load((await cli("evidence", "show", "ctr/new", "x", "-o", "yaml")).out)
    assert data["results"][1]["slice"] == {"country": "de"} and data["evaluator"] == {"kind": "INTERNAL"}
    # Judged by its worst slice.
    rules = write("rules.yaml", "- {id: r, metric: auc, worst_slice_by: country, minimum: 0.75, expected_slices: [de]}")
    assert "auc of country=de is 0.7" in (await cli("evidence", "check", "ctr/new", "--rules", rules)).out


MISTAKES: list[tuple[list[str], str]] = [
    (["evidence", "add", "ctr/new", "-f", "r.yaml", "--set", "metric=x"], "EvaluationReport has no field 'metric'"),
    (["evidence", "add", "ctr", "-f", "r.yaml"], "give TYPE/MODEL or modelTypes/ID/models/ID"),
    (["evidence", "add", "ctr/nope", "-f", "r.yaml"], "modelTypes/ctr/models/nope does not exist"),
    (["evidence", "show", "ctr/new"], "No evaluation reports yet. Add one"),
    (["evidence", "show", "ctr/new", "nope"], "evaluationReports/nope does not exist"),
    (["evidence", "delete", "ctr/new", "nope"], "evaluationReports/nope does not exist"),
    (["evidence", "check", "ctr/new", "--rules", "empty.yaml"], "empty.yaml holds no rules"),
    (["evidence", "check", "ctr/new", "--rules", "nope.yaml"], "nope.yaml"),
    (["evidence", "check", "ctr/new", "--rules", "bad.yaml"], "must expect exactly one of minimum"),
    (["evidence", "import", "fmeval", "ctr/new", "r.yaml"], "r.yaml, line 2: is neither a summary of FMEval's"),
    (["evidence", "import", "mapped", "ctr/new", "r.yaml", "--mapping", "bad.yaml"], "bad.yaml is no mapping"),
]


async def test_a_mistake_is_told_on_one_line(cli: Run) -> None:
    write("r.yaml", REPORT)
    write("empty.yaml", "")
    write("bad.yaml", "- {id: r, metric: auc}")
    for arguments, said in MISTAKES:
        done = await cli(*arguments)
        assert done.status == 1 and done.out == "", arguments
        assert done.err.count("\n") == 1 and said in done.err and "Traceback" not in done.err, done.err
