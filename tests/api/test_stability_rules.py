"""Rules for Prometheus: promtool loads them, and Prometheus's own engine says when they fire and when they stop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from modelfleet.common.v1.serving_pb2 import TIER3
from modelfleet.registry.v1 import registry_pb2
from modelfleet.rules import rules
from modelfleet.stability.v1 import slos_pb2 as pb
from tests.support.prometheus import promtool
from tests.support.slos import an_slo

INFO = (
    'modelfleet_model_info{model_type="ctr",model="v7",slo="ctr",team="feed",surface="",tier="TIER1",role="BASELINE"}'
)
STABILITY = 'modelfleet_slo_minute{slo="ctr",objective="stability"}'
COVERAGE = 'modelfleet_slo_minute{slo="ctr",objective="coverage"}'
EVALUATED = "modelfleet_stability_evaluated_timestamp_seconds"
# Minutes of the beginning, in which all is well.
WELL = 100

Firing = set[tuple[str, str]]
UNSTABLE: Firing = {("ModelUnstable", "page")}


def replay(
    folder: Path,
    slos: Sequence[pb.Slo],
    series: Mapping[str, str],
    firing: Mapping[int, Firing],
    *,
    told: Mapping[int, Sequence[Mapping[str, Any]]] | None = None,
    windows: Sequence[str] = (),
) -> None:
    """Has Prometheus's engine run the rules over series, a sample a minute.

    Args:
        folder: an empty one.
        slos: that rules are made of.
        series: values, in promtool's notation.
        firing: what fires at a minute, by name and severity.
        told: alerts in full, at a minute.
        windows: those that are recorded; all, where none are given.
    """
    written = rules(slos)
    for group in written["groups"] if windows else ():
        group["rules"] = [
            rule
            for rule in group["rules"]
            if not rule.get("record", "").startswith("slo:modelfleet_bad") or rule["record"].endswith(tuple(windows))
        ]
    (folder / "rules.yml").write_text(yaml.safe_dump(written))
    shown = 'count by (alertname, severity) (ALERTS{alertstate="firing",alertname!="StabilityNotEvaluated"})'
    test = {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": [
            {
                "expr": shown,
                "eval_time": f"{minute}m",
                "exp_samples": [
                    {"labels": f'{{alertname="{name}", severity="{severity}"}}', "value": 1}
                    for name, severity in sorted(expected)
                ],
            }
            for minute, expected in firing.items()
        ],
        "alert_rule_test": [
            {"eval_time": f"{minute}m", "alertname": "ModelUnstable", "exp_alerts": list(alerts)}
            for minute, alerts in (told or {}).items()
        ],
    }
    tests = {"rule_files": ["rules.yml"], "evaluation_interval": "1m", "tests": [test]}
    (folder / "test.yml").write_text(yaml.safe_dump(tests))
    promtool("test", "rules", str(folder / "test.yml"))


def test_what_is_written_for_a_whole_fleet_is_accepted_by_promtool(tmp_path: Path) -> None:
    experiment: dict[str, Any] = {"name": "slos/ctr.v8", "role": registry_pb2.Model.EXPERIMENT, "on_call": ""}
    fleet = [an_slo(), an_slo(model_id="v8", **experiment), an_slo("feed_rank", target=0.9306, tier=TIER3)]
    towers = an_slo("towers")
    del towers.objectives[:2]
    (tmp_path / "rules.yml").write_text(yaml.safe_dump(rules([*fleet, towers])))
    promtool("check", "rules", str(tmp_path / "rules.yml"))
    assert rules([])["groups"][0]["rules"]


def test_a_page_fires_within_minutes_and_stops_once_it_is_over(tmp_path: Path) -> None:
    # 9 of 60 minutes are more than 14.4 %, of which 99 % allows 1 %.
    values = f"1x{WELL - 1} 0x11 1x100"
    replay(
        tmp_path,
        [an_slo()],
        {STABILITY: values, INFO: "1x200", EVALUATED: "0+60x200"},
        {
            WELL + 5: set(),
            WELL + 10: UNSTABLE,
            WELL + 14: UNSTABLE,
            # The short window has forgotten it; then it is held on to for five minutes.
            WELL + 20: UNSTABLE,
            WELL + 25: set(),
        },
        told={
            WELL + 14: [
                {
                    "exp_labels": {
                        "severity": "page", "slo": "ctr", "objective": "stability", "team": "feed", "tier": "TIER1",
                        "on_call": "feed-pager", "model_type": "ctr", "model": "v7", "role": "BASELINE",
                    },
                    "exp_annotations": {
                        "summary": "ctr/v7 is unstable: minutes with predictions outside of their healthy ranges",
                        "description": "The budget of ctr (0.99 of minutes) burns at 20 times its even rate.",
                        "response": "Never turn it off: page its owner. Look: modelfleet investigate ctr/v7",
                        "budget": "modelfleet stability slo get ctr",
                    },
                }
            ]
        },
    )  # fmt: skip


@pytest.mark.parametrize(
    "values",
    [
        f"1x{WELL} 0x1 1x50",  # a blip of two minutes
        f"1x{WELL} _x50",  # unknown
        f"_x{WELL} 0x20",  # too few minutes that count
    ],
)
def test_what_must_not_wake_anybody_does_not(tmp_path: Path, values: str) -> None:
    series = {STABILITY: values, INFO: "1x200", EVALUATED: "0+60x200"}
    replay(tmp_path, [an_slo(target=0.999)], series, {minute: set() for minute in range(WELL, 150, 5)})


def test_a_slow_leak_is_a_ticket(tmp_path: Path) -> None:
    leak = " ".join(["0 1x23"] * 31)  # 4 % for half a day
    series = {STABILITY: leak, INFO: "1x750", EVALUATED: "0+60x750"}
    replay(tmp_path, [an_slo()], series, {700: set(), 740: {("ModelUnstable", "ticket")}}, windows=("1d", "2h"))


def test_nobody_is_woken_for_an_unimportant_model_or_for_missing_evidence(tmp_path: Path) -> None:
    series = {STABILITY: f"1x{WELL} 0x100", COVERAGE: "0x200", INFO: "1x200", EVALUATED: "0+60x200"}
    unstable, not_observed = ("ModelUnstable", "ticket"), ("ModelNotObserved", "ticket")
    replay(tmp_path, [an_slo(tier=TIER3)], series, {WELL: set(), 150: {unstable}, 190: {unstable, not_observed}})


def test_two_replicas_and_a_baseline_that_is_handed_over_are_one_alert(tmp_path: Path) -> None:
    first, second = (STABILITY.replace("{", f'{{instance="{name}",') for name in ("a", "b"))
    old, new = (INFO.replace("{", f'{{instance="{name}",') for name in ("a", "b"))
    values = f"1x{WELL - 1} 0x50"
    series = {first: values, second: values, old: "1x200", new.replace("v7", "v8"): "1x200", EVALUATED: "0+60x200"}
    replay(tmp_path, [an_slo()], series, {WELL + 30: UNSTABLE})


def test_somebody_is_woken_where_nothing_is_evaluated(tmp_path: Path) -> None:
    (tmp_path / "rules.yml").write_text(yaml.safe_dump(rules([])))
    firing = 'ALERTS{alertname="StabilityNotEvaluated",alertstate="firing"}'
    once = [{"labels": firing.replace("{", '{severity="page",'), "value": 1}]
    stalled = {"interval": "1m", "input_series": [{"series": EVALUATED, "values": "0+60x30 1800x30"}]}
    gone: dict[str, Any] = {"interval": "1m", "input_series": []}
    stalled["promql_expr_test"] = [
        {"expr": firing, "eval_time": f"{minute}m", "exp_samples": samples}
        for minute, samples in ((30, []), (45, once))
    ]
    gone["promql_expr_test"] = [{"expr": firing, "eval_time": "10m", "exp_samples": once}]
    tests = {"rule_files": ["rules.yml"], "evaluation_interval": "1m", "tests": [stalled, gone]}
    (tmp_path / "test.yml").write_text(yaml.safe_dump(tests))
    promtool("test", "rules", str(tmp_path / "test.yml"))
