"""`modelfleet fleet`: synthetic fleets, for trying the commands, for rehearsals and for benchmarks."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from modelfleet import errors
from modelfleet.cli import render
from modelfleet.cli.session import FleetGroup, Session, with_session
from modelfleet.code.documents import document_of
from modelfleet.code.plan import name_of
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


# Summed up.


def _sum_up(session: Session, fleet: Fleet) -> None:
    stages: Counter[str] = Counter()
    tiers: Counter[str] = Counter()
    roles: Counter[str] = Counter()
    with render.progress("looking at model types", fleet.types) as advance:
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
    with render.progress("writing model types", fleet.types) as advance:
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
    """What is written by one call: model types with all of their models, or assets."""

    changes: Sequence[pb.EntryChange]
    # How many entries of the fleet it passes, those included that are there already.
    passed: int


def batches(fleet: Fleet, known: frozenset[str]) -> Iterator[Batch]:
    """Yields what of a fleet is not known by name, in an order in which references hold."""
    changes = [*_teams_and_regions(fleet, known)]
    size = passed = 0
    for whole in _wholes(fleet):
        more = sum(change.ByteSize() for change in whole)
        if changes and (len(changes) + len(whole) > _MOST_ENTRIES or size + more > _MOST_BYTES):
            yield Batch(changes, passed)
            changes, size, passed = [], 0, 0
        if name_of(whole[0]) not in known:
            changes += whole
            size += more
        passed += 1
    yield Batch(changes, passed)


def _wholes(fleet: Fleet) -> Iterator[list[pb.EntryChange]]:
    """Yields what is written together or not at all."""
    for model_type in fleet.model_types():
        models = (pb.EntryChange(model=model) for model in fleet.models_of(model_type))
        yield [pb.EntryChange(model_type=registrable(model_type)), *models]
    for asset in fleet.assets():
        yield [pb.EntryChange(asset=asset)]


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
        self._written: Counter[str] = Counter()
        # Model types that shall have a tier that people grant.
        self._wanting: list[pb.ModelType] = []

    def _names(self, force: bool) -> frozenset[str]:
        """Returns the names of what is registered. Refuses a registry of somebody's real fleet."""
        registry, size = self._registry, 1000
        # Regions are places, not somebody's fleet: every installation has one from the start.
        places = [region.name for region in registry.list_regions_all(page_size=size)]
        entries: list[Any] = list(registry.list_teams_all(page_size=size))
        entries += registry.list_model_types_all(page_size=size)
        entries += registry.list_assets_all(page_size=size)
        real = [entry.name for entry in entries if not is_synthetic(entry)]
        if real and not force:
            shown = ", ".join(real[:3]) + (f" and {len(real) - 3:,} more" if len(real) > 3 else "")
            raise click.ClickException(
                f"this registry has entries that are not synthetic ({shown}); use one that has none, or mix them with"
                " --force"
            )
        return frozenset((*places, *(entry.name for entry in entries)))

    def run(self) -> None:
        """Writes what is not there yet, and asks for the tiers that people grant."""
        # First, so that the registry takes the ids of the types apart by it.
        scheme = self._fleet.naming_scheme()
        with contextlib.suppress(errors.AlreadyExists):
            self._registry.create_naming_scheme(
                naming_scheme_id=render.short(scheme.name), naming_scheme=scheme, reason=self._reason
            )
        total = self._fleet.types + sum(1 for _ in self._fleet.assets())
        with render.progress("writing model types and assets", total) as advance:
            for batch in batches(self._fleet, self._known):
                self._apply(batch.changes)
                advance(batch.passed)
        with render.progress("asking for tiers", len(self._wanting)) as advance:
            for model_type in self._wanting:
                self._ask_for_tier(model_type)
                advance(1)

    def _apply(self, changes: Sequence[pb.EntryChange]) -> None:
        if not changes:
            return
        self._registry.apply_entries(changes=changes, adopt_serving=True, reason=self._reason, timeout=_APPLY_SECONDS)
        self._written.update(change.WhichOneof("entry") or "" for change in changes)
        self._wanting += [change.model_type for change in changes if WANTED_TIER in change.model_type.labels]

    def _ask_for_tier(self, model_type: pb.ModelType) -> None:
        evidence = criticality_pb2.CriticalityEvidence(
            on_call_24x7=f"pager-{render.short(model_type.team)}",
            business_metric="synthetic sessions",
            contribution="Synthetic: nothing real depends on it.",
        )
        tier = serving_pb2.Tier.Value(model_type.labels[WANTED_TIER])
        self._registry.request_criticality(resource=model_type.name, tier=tier, evidence=evidence, reason=self._reason)

    def say(self) -> None:
        """Says what was written, and what was not."""
        types, models, assets = (self._written[kind] for kind in ("model_type", "model", "asset"))
        there = self._fleet.types - types
        if not self._session.is_table:
            data = {"model_types": types, "models": models, "assets": assets, "requests": len(self._wanting)}
            render.dump(self._session, data | {"unchanged": there})
            return
        click.echo(f"{types:,} model types with {models:,} models, and {assets:,} assets written.")
        if there:
            click.echo(f"{there:,} model types were there already and stay as they are.")
        if self._wanting:
            click.echo(f"{len(self._wanting):,} of them are TIER2 and ask for TIER0 or TIER1, which people approve:")
            click.echo("  modelfleet registry criticality list")
        click.echo("See what serves what: modelfleet registry type list")
