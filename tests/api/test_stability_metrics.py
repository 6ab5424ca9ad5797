"""What Prometheus is told of models and objectives: what is not known is absent, and nothing grows without bound."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from modelfleet.registry.v1 import registry_pb2 as registry_pb
from modelfleet.rules import rules
from modelfleetd.clock import ManualClock
from modelfleetd.stability.domain import budget
from modelfleetd.stability.domain.availability import NOT_OBSERVED
from modelfleetd.stability.domain.budget import Budgets
from modelfleetd.stability.domain.fleet import Metric, Role, Tier, WatchedModel
from modelfleetd.stability.domain.maturity import minute_of
from modelfleetd.stability.domain.slices import Objective, Slice
from modelfleetd.stability.domain.standing import ModelState, Standing
from modelfleetd.stability.domain.window_verdict import Stability
from modelfleetd.stability.published import METRICS, Published
from tests.support.addresses import free_address
from tests.support.dashboard import expressions
from tests.support.prometheus import promtool, scraping_prometheus
from tests.support.stability import CTR, NOW, OLD, at, stability_fleet
from tests.support.wait import until
from tests.support.watched import standing, verdict, watched, watched_fleet

MINUTE = minute_of(NOW)
V7 = watched()
EXPERIMENT = watched(model_id="v8", role=Role.EXPERIMENT, tier=Tier.TIER3, share_basis_points=1000)


@dataclass
class Evaluation:
    """The newest evaluation, as the evaluator has it."""

    standings: Mapping[str, Standing]
    minute: int | None = MINUTE
    seconds: float | None = 1.5


@dataclass
class Kept:
    """Budgets as they are kept."""

    newest: Budgets | None


class Scraped:
    """The samples of a page, by name and labels."""

    def __init__(self, text: bytes) -> None:
        self.families = {family.name: family for family in text_string_to_metric_families(text.decode())}
        self.samples = [sample for family in self.families.values() for sample in family.samples]

    def value(self, name: str, **labels: str) -> float | None:
        """The one sample that has these labels among its own; None where there is none."""
        found = [s.value for s in self.samples if s.name == name and labels.items() <= s.labels.items()]
        assert len(found) <= 1, f"{name}{labels} is {found}"
        return found[0] if found else None


def budgets_of(models: Sequence[WatchedModel], minute: int = MINUTE, **slices: Slice) -> Budgets:
    """Budgets after three days of which the last ten minutes were these, by objective."""
    histories = {}
    for kind in (Objective.STABILITY, Objective.AVAILABILITY):
        found = budget.blank([model.slo for model in models], minute)
        found.recent[:] = Slice.GOOD
        found.recent[:, -10:] = slices.get(kind.name.lower(), Slice.GOOD)
        found.hours[:, -72:, 0] = 60
        histories[kind] = found
    return budget.budgets(watched_fleet(models), histories)


def scraped(models: Sequence[WatchedModel], *standings: Standing, clock: Any = None, **slices: Slice) -> Scraped:
    evaluation = Evaluation({found.model: found for found in standings})
    kept: Any = Kept(budgets_of(models, **slices))
    return Scraped(Published(evaluation, kept, clock or ManualClock(NOW)).text())


def test_a_model_is_described_with_its_figures_and_ranges() -> None:
    told = scraped(
        [V7],
        standing(V7, verdict(Metric.CALIBRATION), verdict(Metric.NE, 0.81), verdict(Metric.VOLUME, 4000.0)),
    )
    info = next(sample for sample in told.samples if sample.name == "modelfleet_model_info")
    assert info.labels == {
        "model_type": "ctr", "model": "v7", "slo": "ctr", "team": "feed", "surface": "home", "product": "app",
        "funnel_stage": "LATE_STAGE_RANKING", "tier": "TIER2", "role": "BASELINE",
    }  # fmt: skip
    assert told.value("modelfleet_model_traffic_share", model="v7") == 0.9
    assert told.value("modelfleet_stability_stable", model="v7") == 1
    assert told.value("modelfleet_stability_state", model="v7", state="STABLE") == 1
    assert told.value("modelfleet_stability_state", model="v7", state="UNSTABLE") == 0
    assert told.value("modelfleet_stability_available", model="v7") == 1
    assert told.value("modelfleet_model_requests_per_second", model="v7") == 16.7
    assert told.value("modelfleet_stability_calibration", model="v7", prediction="click") == 1.05
    assert told.value("modelfleet_stability_corrected_calibration", prediction="click") == 1.05
    assert told.value("modelfleet_stability_normalized_entropy", prediction="click") == 0.81
    assert told.value("modelfleet_stability_base_rate", prediction="click") == 0.03
    assert told.value("modelfleet_stability_volume", prediction="click") == 4000
    assert told.value("modelfleet_stability_label_coverage", prediction="click") == 0.97
    for metric in ("calibration", "ne", "volume"):
        assert told.value("modelfleet_stability_range_high", metric=metric) == 1.25
        assert told.value("modelfleet_stability_in_range", metric=metric) == 1
    assert told.value("modelfleet_stability_evaluated_timestamp_seconds") == MINUTE * 60
    assert told.value("modelfleet_stability_evaluation_seconds") == 1.5


def test_what_is_not_known_is_absent() -> None:
    unknown = verdict(Metric.CALIBRATION, None, label_coverage=0.1)
    found = standing(V7, unknown, state=ModelState.UNKNOWN, availability=NOT_OBSERVED)
    told = scraped([V7], found, stability=Slice.UNKNOWN, availability=Slice.NONE)
    assert told.value("modelfleet_stability_stable", model="v7") is None
    assert told.value("modelfleet_stability_state", model="v7", state="UNKNOWN") == 1
    assert told.value("modelfleet_stability_available", model="v7") is None
    assert told.value("modelfleet_model_requests_per_second", model="v7") is None
    assert told.value("modelfleet_stability_corrected_calibration", model="v7") is None
    assert told.value("modelfleet_stability_in_range", model="v7") is None
    assert told.value("modelfleet_stability_label_coverage", model="v7") == 0.1
    for objective, minute in (("stability", None), ("availability", None), ("coverage", 0)):
        assert told.value("modelfleet_slo_minute", slo="ctr", objective=objective) == minute
    # Half of the last five minutes must be valid; the hour is.
    assert told.value("modelfleet_slo_burn_rate", objective="stability", window="5m") is None
    assert told.value("modelfleet_slo_burn_rate", objective="stability", window="1h") == 0


def test_a_calibration_that_labels_are_still_to_come_for_is_the_corrected_one_alone() -> None:
    told = scraped([V7], standing(V7, verdict(Metric.CALIBRATION, 1.4, immature=True, state=Stability.UNSTABLE)))
    assert told.value("modelfleet_stability_calibration", model="v7") is None
    assert told.value("modelfleet_stability_corrected_calibration", model="v7") == 1.4
    assert told.value("modelfleet_stability_in_range", metric="calibration") == 0


def test_objectives_are_those_of_the_slo_whichever_model_it_is_about() -> None:
    told = scraped([V7, EXPERIMENT], stability=Slice.BAD)
    assert told.value("modelfleet_slo_target", slo="ctr", objective="stability") == 0.99
    assert told.value("modelfleet_slo_minute", slo="ctr.v8", objective="stability") == 0
    assert told.value("modelfleet_slo_minute", slo="ctr", objective="coverage") == 1
    assert told.value("modelfleet_slo_budget_left", slo="ctr", objective="availability") == 1
    assert told.value("modelfleet_slo_burn_rate", slo="ctr", objective="stability", window="5m") == pytest.approx(100)
    assert told.value("modelfleet_slo_firing", slo="ctr", objective="stability", severity="page") == 1
    assert told.value("modelfleet_slo_firing", slo="ctr", objective="availability", severity="page") == 0
    labels = {label for s in told.samples if s.name.startswith("modelfleet_slo") for label in s.labels}
    assert labels == {"slo", "objective", "window", "severity"}


def test_what_is_old_is_not_said_of_now() -> None:
    later = ManualClock(NOW + timedelta(minutes=4))
    told = scraped([V7], standing(V7, verdict(Metric.CALIBRATION)), clock=later)
    assert told.value("modelfleet_stability_stable", model="v7") is None
    assert told.value("modelfleet_slo_minute", objective="stability") is None
    assert told.value("modelfleet_slo_budget_left", objective="stability") is not None
    assert told.value("modelfleet_stability_evaluated_timestamp_seconds") == MINUTE * 60


def test_a_model_that_serves_no_more_disappears() -> None:
    both = [standing(V7, verdict(Metric.CALIBRATION)), standing(EXPERIMENT, verdict(Metric.CALIBRATION))]
    evaluation, kept = Evaluation({found.model: found for found in both}), Kept(budgets_of([V7, EXPERIMENT]))
    published = Published(evaluation, kept, ManualClock(NOW))  # type: ignore[arg-type]
    assert b'model="v8"' in published.text()
    kept.newest = budgets_of([V7])
    assert b"v8" not in published.text()
    kept.newest = None
    assert b"v7" not in published.text()


def test_the_same_evaluation_is_written_once() -> None:
    evaluation, kept = Evaluation({}), Kept(budgets_of([V7]))
    published = Published(evaluation, kept, ManualClock(NOW))  # type: ignore[arg-type]
    first = published.text()
    assert published.text() is first
    evaluation.minute = MINUTE + 1
    assert published.text() is not first


def test_only_so_many_models_are_published_the_most_critical_ones_and_baselines_first() -> None:
    models = [EXPERIMENT, V7, watched("ads", tier=Tier.UNSTATED), watched("rank", tier=Tier.TIER0)]
    kept: Any = Kept(budgets_of(models))
    told = Scraped(Published(Evaluation({}), kept, ManualClock(NOW), most_models=2).text())
    shown = {s.labels["slo"] for s in told.samples if s.name == "modelfleet_model_info"}
    assert shown == {"rank", "ctr"}
    assert told.value("modelfleet_stability_models") == 4
    assert told.value("modelfleet_stability_models_left_out") == 2


def test_labels_hold_whatever_people_write() -> None:
    odd = watched(surface='"quoted"\\ and\nbroken')
    info = next(sample for sample in scraped([odd]).samples if sample.name == "modelfleet_model_info")
    assert info.labels["surface"] == odd.surface


def test_promtool_finds_nothing_to_complain_of() -> None:
    kept: Any = Kept(budgets_of([V7]))
    text = Published(Evaluation({V7.name: standing(V7, verdict(Metric.NE))}), kept, ManualClock(NOW)).text()
    promtool("check", "metrics", text=text)


# --- a large fleet ----------------------------------------------------------------------------------------------------

MODELS, PREDICTIONS = 1000, ("click", "like", "share")
# Of a model: what it is about, and for each prediction three metrics with ranges; of each objective.
MOST_LINES_A_MODEL = 85


def test_a_thousand_models_are_told_within_a_second_and_in_a_bounded_number_of_lines() -> None:
    models = [watched(f"type_{number}") for number in range(MODELS)]
    metrics = [replace(verdict(metric), prediction=each) for each in PREDICTIONS for metric in Metric]
    evaluation = Evaluation({model.name: standing(model, *metrics) for model in models})
    kept: Any = Kept(budgets_of(models))
    published = Published(evaluation, kept, ManualClock(NOW))
    start = time.process_time()
    text = published.text()
    assert time.process_time() - start < 1.0
    lines = [line for line in text.splitlines() if not line.startswith(b"#")]
    assert len(lines) <= MODELS * MOST_LINES_A_MODEL + len(METRICS)
    # Label values: of the registry, or from short lists.
    told = Scraped(b"\n".join(text.splitlines()[:2000]) + b"\n")
    assert {family.name for family in told.families.values()} <= set(METRICS)
    for sample in told.samples:
        assert tuple(sample.labels) == METRICS[sample.name][0]
    assert np.isfinite([sample.value for sample in told.samples]).all()


async def test_a_real_prometheus_reads_the_metrics_and_runs_the_rules(database_url: str, tmp_path: Path) -> None:
    address = free_address()
    async with stability_fleet(database_url, metrics_listen=address) as fleet:
        stability = fleet.client.stability
        known = [1 if index % 2 == 0 else 0 for index in range(400)]
        before = at(minutes=-30)
        examples = fleet.examples([0.9] * 400, known, model=OLD, event_time=[before] * 400)
        await fleet.write(examples)
        roles = [registry_pb.RoleChange(model=OLD, role=registry_pb.Model.BASELINE)]
        await fleet.client.registry.adopt_serving(model_type=CTR, role_changes=roles)

        async def served() -> bool:
            return bool((await stability.list_slos()).slos)

        async def evaluated() -> bool:
            # Whoever was at work when the clock moved looks at it again a second later.
            await fleet.clock.advance(0.05)
            models = (await stability.list_model_stabilities()).models
            return [model.evaluate_time.seconds for model in models] == [(MINUTE + 1) * 60]

        await until(served, timeout=20)
        await fleet.clock.advance(60)
        await until(evaluated, timeout=20)
        written = rules((await stability.list_slos()).slos)
        for group in written["groups"]:
            group["interval"] = "1s"
        with scraping_prometheus(tmp_path, address, yaml.safe_dump(written)) as url:
            async with httpx.AsyncClient(base_url=url, trust_env=False) as http:

                async def value(query: str) -> list[tuple[dict[str, str], float]]:
                    answer = (await http.get("/api/v1/query", params={"query": query})).json()
                    assert answer["status"] == "success", answer
                    return [(found["metric"], float(found["value"][1])) for found in answer["data"]["result"]]

                async def model() -> Any:
                    return await value("slo:modelfleet_model:info")

                ((labels, _),) = await until(model, timeout=30)
                assert (labels["model"], labels["slo"], labels["role"]) == ("old", "ctr", "BASELINE")
                ((_, calibration),) = await value('modelfleet_stability_corrected_calibration{prediction="click"}')
                assert calibration == pytest.approx(1.8)
                ((_, target),) = await value('modelfleet_slo_target{slo="ctr",objective="stability"}')
                assert target == 0.95
                assert await value("modelfleet_stability_stable") == []  # `buy` and `like` are not known
                ((_, unknown),) = await value('modelfleet_stability_state{state="UNKNOWN"}')
                assert unknown == 1
                ((_, not_observed),) = await value('slo:modelfleet_minute:good{objective="coverage"}')
                assert not_observed == 0
                ((_, seconds),) = await value("scrape_duration_seconds")
                assert seconds < 1.0
                loaded = (await http.get("/api/v1/rules")).json()["data"]["groups"]
                health = {rule["health"] for group in loaded for rule in group["rules"]}
                assert health == {"ok"}
                for shown in expressions():
                    await value(shown)
