"""The dashboard for Grafana: it shows what is published, by choices that exist, and nothing lies on anything else."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from modelfleet.rules import rules
from modelfleetd.stability.published import METRICS
from tests.support.dashboard import DASHBOARD, expressions
from tests.support.prometheus import promtool
from tests.support.slos import an_slo

COLUMNS = 24


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = DASHBOARD["panels"]
    return found


def targets() -> Iterator[tuple[str, dict[str, Any]]]:
    for panel in panels():
        for target in panel.get("targets", ()):
            yield panel["title"], target


def test_every_expression_is_one_and_asks_for_what_is_published(tmp_path: Path) -> None:
    asked = expressions()
    assert len(asked) > 30
    groups = [{"name": "dashboard", "rules": [{"record": f"shown:{n}", "expr": text} for n, text in enumerate(asked)]}]
    written = tmp_path / "rules.yml"
    written.write_text(yaml.safe_dump({"groups": groups}))
    promtool("check", "rules", str(written))
    names = {name for text in asked for name in re.findall(r"modelfleet_\w+", text)}
    assert names <= set(METRICS)
    # Of what is published all is shown, less what others are computed from.
    unseen = {"modelfleet_slo_target", "modelfleet_slo_minute", "modelfleet_model_traffic_share"}
    unseen |= {"modelfleet_stability_models", "modelfleet_stability_models_left_out"}
    assert set(METRICS) - names == unseen


def test_labels_are_those_that_the_metrics_have() -> None:
    known = {label for labels, _ in METRICS.values() for label in labels}
    for text in expressions():
        grouped = re.findall(r"(?:by|on|group_left) \(([^()]*)\)", text)
        used = {label.strip() for labels in grouped for label in labels.split(",") if label.strip()}
        assert used <= known, text


def test_what_is_chosen_above_is_used_by_every_panel_about_models() -> None:
    variables = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
    assert list(variables) == ["datasource", "team", "surface", "type", "model"]
    for title, target in targets():
        assert target["datasource"]["uid"] == "${datasource}"
        used = set(re.findall(r"\$(\w+)", target["expr"]))
        assert used in (set(), {"team", "surface", "type", "model"}), f"{title}: {used}"
        assert used or "evaluat" in target["expr"], f"{title} ignores the choice"
    for name in ("team", "surface", "type", "model"):
        query = variables[name]["definition"]
        assert query.startswith("label_values(modelfleet_model_info")
        assert set(re.findall(r"\$(\w+)", query)) <= set(variables)


def test_panels_have_a_place_of_their_own() -> None:
    assert len({panel["id"] for panel in panels()}) == len(panels())
    rows = [panel["title"] for panel in panels() if panel["type"] == "row"]
    assert rows == [
        "Fleet",
        "Worst models",
        "Calibration and normalized entropy, with the healthy range",
        "Coverage and volume",
        "Budgets and burn rates",
        "Alerts",
    ]
    taken: set[tuple[int, int]] = set()
    for panel in panels():
        place = panel["gridPos"]
        cells = set(
            itertools.product(range(place["x"], place["x"] + place["w"]), range(place["y"], place["y"] + place["h"]))
        )
        assert max(x for x, _ in cells) < COLUMNS and not cells & taken, panel["title"]
        taken |= cells
        refs = [target["refId"] for target in panel.get("targets", ())]
        assert len(set(refs)) == len(refs) and (refs or panel["type"] == "row")


def test_it_can_be_imported() -> None:
    assert DASHBOARD["uid"] == "modelfleet" and DASHBOARD["schemaVersion"] >= 36
    assert {panel["type"] for panel in panels()} == {"row", "stat", "timeseries", "table"}
    assert "id" not in DASHBOARD, "the number of one installation"
    json.dumps(DASHBOARD, allow_nan=False)


def test_the_configuration_of_prometheus_that_comes_with_it_is_accepted(tmp_path: Path) -> None:
    deployed = Path(__file__).parents[2] / "deploy" / "prometheus" / "prometheus.yml"
    (tmp_path / "prometheus.yml").write_text(deployed.read_text())
    (tmp_path / "modelfleet.rules.yml").write_text(yaml.safe_dump(rules([an_slo()])))
    promtool("check", "config", str(tmp_path / "prometheus.yml"))


def test_the_readme_lists_every_metric() -> None:
    readme = (Path(__file__).parents[2] / "deploy" / "README.md").read_text()
    for name, (labels, meaning) in METRICS.items():
        assert f"| `{name}` | {', '.join(labels)} | {meaning} |\n" in readme
