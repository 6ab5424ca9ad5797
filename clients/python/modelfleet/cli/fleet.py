"""`modelfleet fleet`: synthetic fleets, for trying the commands, for rehearsals and for benchmarks."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from modelfleet import errors
from modelfleet.cli import render
from modelfleet.cli.session import FleetGroup, Session, with_session
from modelfleet.code.documents import document_of
from modelfleet.code.tree import State, Tree
from modelfleet.common.v1 import serving_pb2
from modelfleet.registry.v1 import criticality_pb2
from modelfleet.registry.v1 import registry_pb2 as pb
from modelfleet.synthetic import (
    MAX_MODELS_PER_TYPE,
    MAX_TYPES,
    WANTED_TIER,
    Fleet,
    generate,
    is_synthetic,
    registrable,
)

# Of one call: the registry takes 2000 entries and 3 MiB, and a type, which is never parted from its models, has fewer.
_MOST_ENTRIES = 500
_MOST_BYTES = 1 << 20
_APPLY_SECONDS = 60.0


@click.group(cls=FleetGroup)
def group() -> None:
    """Synthetic fleets, for trying the commands, for rehearsals and for benchmarks."""


@group.command("generate")
@click.option("--types", type=click.IntRange(1, MAX_TYPES), required=True, help="How many model types.")
@click.option(
    "--models-per-type",
    type=click.IntRange(1, MAX_MODELS_PER_TYPE),
    default=20,
    show_default=True,
    help="How many models a type has on average.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Another seed gives another fleet.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Write it as files into this folder.")
@click.option("--apply", is_flag=True, help="Write it into the registry; what is there stays as it is.")
@click.option("--force", is_flag=True, help="With --apply: also into a registry of entries that are not synthetic.")
@with_session
def generate_(
    session: Session, types: int, models_per_type: int, seed: int, out: Path | None, apply: bool, force: bool
) -> None:
    """Make a synthetic fleet: surfaces, funnel stages, teams, tiers, experiments, dependencies.

    Everything in it is marked synthetic. The same seed gives the same fleet, and a smaller one is the beginning of a
    larger one: applied again with more types, it grows. Without --apply and --out it is summed up.
    """
    if force and not apply:
        raise click.UsageError("--force goes with --apply")
    if out is not None and apply:
        raise click.UsageError("--out or --apply, not both")
    fleet = generate(types, models_per_type, seed)
    if apply:
        applied = _Applied(session, fleet, force)
        applied.run()
        applied.say()
    elif out is not None:
        _write(session, fleet, out)
    else:
        _sum_up(session, fleet)


@contextmanager
def _progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Shows on a terminal how far something has come; gives what it is told that with."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda _: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        yield functools.partial(bar.advance, bar.add_task(what, total=total))


# Summed up.


def _sum_up(session: Session, fleet: Fleet) -> None:
    stages: Counter[str] = Counter()
    tiers: Counter[str] = Counter()
    roles: Counter[str] = Counter()
    with _progress("looking at model types", fleet.types) as advance:
        for model_type in fleet.model_types():
            stages[render.enum(model_type, "funnel_stage")] += 1
            tiers[render.enum(model_type, "tier") or "(none)"] += 1
            roles.update(render.enum(model, "role") for model in fleet.models_of(model_type))
            advance(1)
    counted = {
        "teams": len(fleet.teams()),
        "regions": len(fleet.regions()),
        "model_types": fleet.types,
        "models": roles.total(),
        "by_stage": dict(sorted(stages.items())),
        "by_tier": dict(sorted(tiers.items())),
        "by_role": dict(sorted(roles.items())),
    }
    if not session.is_table:
        render.dump(session, counted)
        return
    headers = ["MODEL TYPES", "MODELS", "TEAMS", "REGIONS"]
    rows = [[str(counted[key]) for key in ("model_types", "models", "teams", "regions")]]
    render.console().print(render.table(headers, rows))
    for title, found in (("stage", stages), ("tier", tiers), ("role", roles)):
        click.echo(f"by {title}: " + ", ".join(f"{count:,} {name}" for name, count in sorted(found.items())))
    again = f"modelfleet fleet generate --types {fleet.types}"
    again += f" --models-per-type {fleet.models_per_type} --seed {fleet.seed}"
    click.echo(f"Nothing was written. Into a registry: {again} --apply; as files: {again} --out DIR")


# As files.


def _write(session: Session, fleet: Fleet, folder: Path) -> None:
    if folder.is_dir() and any(folder.iterdir()):
        raise click.UsageError(f"{folder} is not empty; name a folder of its own")
    tree = Tree(folder)
    files = 0
    with _progress("writing model types", fleet.types) as advance:
        entries: list[Any] = [*fleet.teams(), *fleet.regions(), *fleet.assets()]
        for entry in entries:
            tree.write(entry.name, State(document_of(entry), 0))
        files += len(entries)
        for model_type in fleet.model_types():
            models = {model.name: document_of(model) for model in fleet.models_of(model_type)}
            tree.write(model_type.name, State(document_of(registrable(model_type)), 0, models))
            files += 1
            advance(1)
    if session.is_table:
        click.echo(f"{files:,} files written to {folder}.")
        click.echo(f"Into a registry: modelfleet registry apply {folder} --adopt")
    else:
        render.dump(session, {"folder": str(folder), "files": files})


# Into a registry.


@dataclass(frozen=True, slots=True)
class Batch:
    """What is written by one call: model types with all of their models."""

    changes: Sequence[pb.EntryChange]
    model_types: Sequence[pb.ModelType]
    # Model types that are passed, so far: also those that were there.
    passed: int


def batches(fleet: Fleet, known: frozenset[str]) -> Iterator[Batch]:
    """Yields what of a fleet is not known by name, in an order in which references hold."""
    yield Batch([*_teams_and_regions(fleet, known)], (), 0)
    changes: list[pb.EntryChange] = []
    types: list[pb.ModelType] = []
    size = passed = 0
    for model_type in fleet.model_types():
        if model_type.name not in known:
            asked = registrable(model_type)
            whole = [pb.EntryChange(model_type=asked)]
            whole += [pb.EntryChange(model=model) for model in fleet.models_of(model_type)]
            more = sum(change.ByteSize() for change in whole)
            if changes and (len(changes) + len(whole) > _MOST_ENTRIES or size + more > _MOST_BYTES):
                yield Batch(changes, types, passed)
                changes, types, size = [], [], 0
            changes += whole
            types.append(asked)
            size += more
        passed += 1
    yield Batch(changes, types, passed)


def _teams_and_regions(fleet: Fleet, known: frozenset[str]) -> Iterator[pb.EntryChange]:
    for team in fleet.teams():
        if team.name not in known:
            yield pb.EntryChange(team=team)
    missing = [region for region in fleet.regions() if region.name not in known]
    # They name each other: all of them first, then where their traffic goes.
    for region in missing:
        yield pb.EntryChange(region=pb.Region(name=region.name, agent_address=region.agent_address))
    for region in missing:
        yield pb.EntryChange(region=region)


class _Applied:
    """A fleet on its way into a registry, and what came of it."""

    def __init__(self, session: Session, fleet: Fleet, force: bool) -> None:
        self._session = session
        self._registry = session.client.registry
        self._fleet = fleet
        self._known = self._names(force)
        self._reason = f"synthetic fleet of seed {fleet.seed}"
        self._types = self._models = self._assets = self._requests = 0
        self._lowered: list[pb.ModelType] = []
        self._missing: list[str] = []

    def _names(self, force: bool) -> frozenset[str]:
        """Returns the names of what is registered. Refuses a registry of somebody's real fleet."""
        registry = self._registry
        entries: list[Any] = [*registry.list_teams_all(page_size=1000), *registry.list_regions_all(page_size=1000)]
        entries += registry.list_model_types_all(page_size=1000)
        real = [entry.name for entry in entries if not is_synthetic(entry)]
        if real and not force:
            shown = ", ".join(real[:3]) + (f" and {len(real) - 3:,} more" if len(real) > 3 else "")
            raise click.ClickException(
                f"this registry has entries that are not synthetic ({shown}); use one that has none, or mix them with"
                " --force"
            )
        return frozenset(entry.name for entry in entries)

    def run(self) -> None:
        """Writes what is not there yet, and asks for the tiers that people grant."""
        with _progress("writing model types", self._fleet.types) as advance:
            done = 0
            for batch in batches(self._fleet, self._known):
                if batch.changes:
                    self._apply(batch)
                advance(batch.passed - done)
                done = batch.passed
        self._or_missing("assets", self._add_assets)
        self._or_missing("requests for tiers", self._ask_for_tiers)

    def _apply(self, batch: Batch) -> None:
        self._registry.apply_entries(
            changes=batch.changes, adopt_serving=True, reason=self._reason, timeout=_APPLY_SECONDS
        )
        self._types += len(batch.model_types)
        self._models += sum(change.HasField("model") for change in batch.changes)
        self._lowered += [model_type for model_type in batch.model_types if WANTED_TIER in model_type.labels]

    def _or_missing(self, what: str, write: Callable[[], None]) -> None:
        try:
            write()
        except errors.Unimplemented:
            # An older registry: the fleet is there without them.
            self._missing.append(what)

    def _add_assets(self) -> None:
        known = {asset.name for asset in self._registry.list_assets_all(page_size=1000)}
        missing = [asset for asset in self._fleet.assets() if asset.name not in known]
        with _progress("writing assets", len(missing)) as advance:
            for asset in missing:
                self._registry.create_asset(asset_id=render.short(asset.name), asset=asset, reason=self._reason)
                self._assets += 1
                advance(1)

    def _ask_for_tiers(self) -> None:
        with _progress("asking for tiers", len(self._lowered)) as advance:
            for model_type in self._lowered:
                evidence = criticality_pb2.CriticalityEvidence(
                    on_call_24x7=f"pager-{render.short(model_type.team)}",
                    business_metric="synthetic sessions",
                    contribution="Synthetic: nothing real depends on it.",
                )
                wanted = serving_pb2.Tier.Value(model_type.labels[WANTED_TIER])
                self._registry.request_criticality(
                    resource=model_type.name, tier=wanted, evidence=evidence, reason=self._reason
                )
                self._requests += 1
                advance(1)

    def say(self) -> None:
        """Says what was written, and what was not."""
        there = self._fleet.types - self._types
        if not self._session.is_table:
            data = {
                "model_types": self._types, "models": self._models, "assets": self._assets, "unchanged": there,
                "lowered": len(self._lowered), "requests": self._requests,
            }  # fmt: skip
            render.dump(self._session, data)
            return
        click.echo(f"{self._types:,} model types with {self._models:,} models, and {self._assets:,} assets written.")
        if there:
            click.echo(f"{there:,} model types were there already and stay as they are.")
        if self._lowered:
            asked = "are asked for and wait for approval" if self._requests else "were not asked for"
            click.echo(f"{len(self._lowered):,} are TIER2 for now: TIER0 and TIER1 go by request, and {asked}.")
        if self._missing:
            click.echo(f"This registry is older than the command and knows no {' and no '.join(self._missing)}.")
        click.echo("See them with: modelfleet registry type list")
