"""A synthetic fleet of any size: what a registry of a real one looks like, made of nothing but a seed.

    fleet = modelfleet.synthetic.generate(types=1000, models_per_type=20, seed=7)
    for model_type in fleet.model_types():
        models = fleet.models_of(model_type)

The same seed gives the same fleet, and a smaller one is the beginning of a larger one: `generate(100)` has the first
hundred model types of `generate(1000)`, with the same models. Everything in it says that it is synthetic
(`is_synthetic`).

It is made funnel by funnel: an app's surface and placement, with sourcing, early and late ranking that consume each
other's output. Importance, demand and the sizes of teams have a heavy tail; few types are TIER0. Some entries lack what
the minimum standard asks for, as entries do.
"""

from __future__ import annotations

import bisect
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from modelfleet.common.v1 import permission_pb2, serving_pb2
from modelfleet.registry.v1 import assets_pb2, classification_pb2
from modelfleet.registry.v1 import registry_pb2 as pb

LABEL: Final = "synthetic"
"""The label, "true", of everything that can have labels."""
DOMAIN: Final = "synthetic.invalid"
"""Where the agents of synthetic regions are: no such domain can exist (RFC 2606)."""
MAX_TYPES: Final = 1_000_000
MAX_MODELS_PER_TYPE: Final = 500
WANTED_TIER: Final = "wanted_tier"
"""The label of a model type that shall have TIER0 or TIER1, which people grant."""

_WHOLE = 10_000

_APPS = {"ig": "photos and stories", "vid": "short videos", "msg": "messaging", "shop": "market place", "mus": "music"}
_SURFACES = {
    "feed": "the main feed",
    "stories": "what disappears after a day",
    "reels": "full-screen videos",
    "explore": "what one does not follow yet",
    "search": "answers to a query",
    "ads": "paid content",
}
_PLACEMENTS = {
    "home": "the first screen",
    "tray": "the row at the top",
    "chain": "what comes after an item",
    "unit": "a unit between other items",
    "notif": "a notification",
}
_SOURCING = {
    "twotower": "retrieval by the product of two towers",
    "graph": "retrieval by walks on the graph of engagement",
    "seqnext": "retrieval by the next item of a sequence",
    "fresh": "retrieval of new items by exploration",
    "topic": "retrieval by topics",
}
_EARLY = {"light": "distilled two-layer ranking", "tinydcn": "small cross network"}
_LATE = {
    "mtml": "multi-task multi-label ranking",
    "mmoe": "mixture of experts for many tasks",
    "seqrank": "ranking by sequences of actions",
    "value": "final value of an item, from all predictions",
}
_PREDICTIONS = {
    "feed": ("like", "comment", "share", "dwell"),
    "stories": ("tap-next", "reply", "like"),
    "reels": ("watch-through", "like", "share", "skip"),
    "explore": ("click", "follow", "hide"),
    "search": ("click", "long-click"),
    "ads": ("click", "conversion", "hide"),
}
_FLAVORS = {pb.SOURCING: "cpu-32", pb.EARLY_STAGE_RANKING: "cpu-64", pb.LATE_STAGE_RANKING: "gpu-l4"}
# Shares of demand, and where a region's traffic goes when it fails.
_REGIONS = {
    "us-east": (3500, {"us-west": 6000, "eu-north": 4000}),
    "us-west": (2000, {"us-east": 8000, "ap-south": 2000}),
    "eu-north": (2500, {"us-east": 7000}),
    "ap-south": (1500, {"eu-north": 5000, "us-west": 3000}),
    "sa-east": (500, {"us-east": _WHOLE}),
}
_PEOPLE = ("ada", "bo", "chen", "dara", "emre", "fay", "goran", "hana", "ines", "jun", "kofi", "lea", "mina", "noor")
_NEWS = (
    "adds features of the last hour",
    "is trained on two more weeks",
    "has a wider embedding of items",
    "drops features that nobody maintains",
    "is calibrated by surface",
    "is distilled from a larger model",
    "has a new head for a rare action",
    "is quantized to eight bits",
)

# Of all types, roughly: the score (importance, and where in the funnel) from which a tier begins.
_TIERS = (
    (0.93, serving_pb2.TIER0),
    (0.86, serving_pb2.TIER1),
    (0.7, serving_pb2.TIER2),
    (0.4, serving_pb2.TIER3),
    (0.0, serving_pb2.TIER4),
)
# How many models the types of ten have, in tenths of the mean; ten together have ten times the mean.
_SIZES = (2, 4, 5, 6, 8, 9, 11, 13, 17, 25)
# Roles by age: the oldest first.
_AGES = (pb.Model.RETIRED, pb.Model.HOLDOUT, pb.Model.BASELINE, pb.Model.EXPERIMENT, pb.Model.CANDIDATE)
# The larger, the more teams.
_TEAMS = 5.0


@dataclass(frozen=True, slots=True)
class _Funnel:
    """One app's surface and placement, and the types that rank for it."""

    app: str
    surface: str
    placement: str
    cell: str
    # Uniform, so that any distribution can be made of it.
    importance: float
    team: str
    # Stage and architecture of its types, in the order of the funnel.
    types: tuple[tuple[pb.FunnelStage.ValueType, str], ...]

    def name(self, architecture: str) -> str:
        """Returns the name of one of its types."""
        parts = (self.app, self.surface, self.placement, architecture, self.cell)
        return "modelTypes/" + "_".join(part for part in parts if part)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a type is: its number in the fleet, its funnel, and its number in there."""

    number: int
    funnel: _Funnel
    position: int


class Fleet:
    """A synthetic fleet; made by `generate`. Its messages are new each time, and the caller's."""

    def __init__(self, types: int, models_per_type: int, seed: int) -> None:
        self.types = types
        self.models_per_type = models_per_type
        self.seed = seed
        self._funnels = _funnels(types, seed)
        self._places = {place.funnel.name(place.funnel.types[place.position][1]): place for place in self._walk()}

    def _walk(self) -> Iterator[_Place]:
        number = 0
        for funnel in self._funnels:
            for position in range(len(funnel.types)):
                if number == self.types:
                    return
                yield _Place(number, funnel, position)
                number += 1

    @cached_property
    def _same_app(self) -> dict[str, list[str]]:
        """Names of the types of an app, in the order of the fleet."""
        found: dict[str, list[str]] = {}
        for name, place in self._places.items():
            found.setdefault(place.funnel.app, []).append(name)
        return found

    def naming_scheme(self) -> classification_pb2.NamingScheme:
        """Returns the scheme that the ids of the types are made by."""
        field, word = classification_pb2.NamingField, classification_pb2.NamingWord

        def listed(key: str, description: str, words: dict[str, str]) -> classification_pb2.NamingField:
            meanings = [word(word=each, meaning=meaning) for each, meaning in words.items()]
            return field(id=key, description=description, words=meanings)

        return classification_pb2.NamingScheme(
            name="namingSchemes/synthetic",
            description="Synthetic: app, surface, placement, architecture, and a cell where a placement has several.",
            separator="_",
            fields=[
                listed("app", "The app.", _APPS),
                listed("surface", "What people look at.", _SURFACES),
                listed("placement", "Where on the surface.", _PLACEMENTS),
                listed("architecture", "How the models are built.", _SOURCING | _EARLY | _LATE),
                field(id="cell", description="Part of the people.", pattern="c[0-9]+", optional=True),
            ],
        )

    def regions(self) -> list[pb.Region]:
        """Returns the regions: the same in every fleet."""
        return [
            pb.Region(
                name=f"regions/{key}",
                agent_address=f"agent.{key}.{DOMAIN}:8443",
                failover_shares=[
                    pb.FailoverShare(region=f"regions/{other}", share_basis_points=share)
                    for other, share in shares.items()
                ],
            )
            for key, (_, shares) in _REGIONS.items()
        ]

    def teams(self) -> list[pb.Team]:
        """Returns the teams, in the order in which they were founded."""
        importance: dict[str, float] = {}
        for place in self._places.values():
            importance[place.funnel.team] = max(place.funnel.importance, importance.get(place.funnel.team, 0.0))
        return [_team(name, self.seed, important=highest > 0.9) for name, highest in importance.items()]

    def model_types(self) -> Iterator[pb.ModelType]:
        """Yields the model types, each after those whose output it consumes, with what serves of its models."""
        for name in self._places:
            yield self._model_type(name)

    def models_of(self, model_type: pb.ModelType) -> Iterator[pb.Model]:
        """Yields the models of a type, oldest first."""
        place = self._places[model_type.name]
        stage, _ = place.funnel.types[place.position]
        draw = _random(self.seed, "models", place.number)
        for number, role in enumerate(self._roles(place.number), start=1):
            yield _model(model_type.name, number, role, stage, draw)

    def assets(self) -> Iterator[assets_pb2.Asset]:
        """Yields the assets: a dashboard and a dataset for each funnel, a training flow for each model type."""
        for funnel in self._funnels:
            names = [name for _, each in funnel.types if (name := funnel.name(each)) in self._places]
            key = "-".join(part for part in (funnel.app, funnel.surface, funnel.placement, funnel.cell) if part)
            for kind, suffix, place in (
                (assets_pb2.Asset.DASHBOARD, "dashboard", f"https://dashboards.{DOMAIN}"),
                (assets_pb2.Asset.DATASET, "examples", f"hive://warehouse.{DOMAIN}"),
            ):
                yield _asset(f"{key}-{suffix}", kind, f"{place}/{key}", funnel.team, names)
            for name in names:
                kind, id_ = assets_pb2.Asset.TRAINING_FLOW, name.split("/")[1]
                yield _asset(f"{id_}-flow", kind, _training_flow(name), funnel.team, [name])

    def _size(self, number: int) -> int:
        """Returns how many models the type of a number has."""
        block = list(_SIZES)
        _random(self.seed, "sizes", number // len(block)).shuffle(block)
        position = number % len(block)
        # Differences of a running sum: ten types together have exactly ten times the mean.
        before, after = (sum(block[:end]) * self.models_per_type // len(block) for end in (position, position + 1))
        return max(1, after - before)

    def _roles(self, number: int) -> list[pb.Model.Role.ValueType]:
        """Returns what the models of a type do for it, oldest first: at the end what was registered last."""
        draw = _random(self.seed, "roles", number)
        size = self._size(number)
        # Some types have only been registered yet.
        if draw.random() < 0.03:
            return [pb.Model.CANDIDATE] * size
        role = pb.Model
        newest_first = (
            *(role.CANDIDATE,) * draw.choices((0, 1, 2, 3), (30, 40, 20, 10))[0],
            *(role.EXPERIMENT,) * draw.choices((0, 1, 2, 4), (40, 30, 20, 10))[0],
            *(role.HOLDOUT,) * draw.choices((0, 1, 2), (45, 40, 15))[0],
        )
        others = newest_first[: size - 1]
        roles = [role.BASELINE, *others, *(role.RETIRED,) * (size - 1 - len(others))]
        return sorted(roles, key=_AGES.index)

    def _model_type(self, name: str) -> pb.ModelType:
        place = self._places[name]
        funnel, number = place.funnel, place.number
        stage, architecture = funnel.types[place.position]
        draw = _random(self.seed, "type", number)
        late = stage == pb.LATE_STAGE_RANKING
        score = 0.8 * funnel.importance + 0.2 * draw.random() * (1.0 if late else 0.6)
        # Important placements are served everywhere.
        wide = len(_REGIONS) if funnel.importance > 0.6 else 1 + int(draw.random() * len(_REGIONS))
        regions = [f"regions/{key}" for key in list(_REGIONS)[:wide]]
        surface, placement = _SURFACES[funnel.surface], _PLACEMENTS[funnel.placement]
        architectures = _SOURCING | _EARLY | _LATE
        made = pb.ModelType(
            name=name,
            purpose=f"Synthetic: {architectures[architecture]} for {surface} ({placement}) of {_APPS[funnel.app]}.",
            team=funnel.team,
            funnel_stage=stage,
            regions=regions,
            upstream_types=self._upstream(place, draw),
            demand_source=_demand(funnel, stage, regions, draw),
            labels={LABEL: "true", "surface": funnel.surface, "app": funnel.app},
        )
        if stage != pb.SOURCING:
            keys = _PREDICTIONS[funnel.surface][: 4 if late else 2]
            made.predictions.extend(pb.Prediction(id=key) for key in keys)
        # Some entries lack their tier.
        if draw.random() > 0.04:
            made.tier = next(tier for least, tier in _TIERS if score >= least)
        self._serve(made, number)
        return made

    def _serve(self, model_type: pb.ModelType, number: int) -> None:
        """States what serves: experiments and holdouts keep small shares, the baseline has the rest."""
        roles = self._roles(number)
        of_role: dict[pb.Model.Role.ValueType, list[str]] = {}
        for index, role in enumerate(roles, start=1):
            of_role.setdefault(role, []).append(_model_name(model_type.name, index))
        if pb.Model.BASELINE not in of_role:
            return
        (model_type.baseline,) = of_role[pb.Model.BASELINE]
        model_type.holdouts.extend(sorted(of_role.get(pb.Model.HOLDOUT, ())))
        for region in sorted(model_type.regions):
            draw = _random(self.seed, "split", number, region)
            shares = [(name, draw.choice((50, 100, 200, 500))) for name in of_role.get(pb.Model.EXPERIMENT, ())]
            shares += [(name, 100) for name in model_type.holdouts]
            shares.append((model_type.baseline, _WHOLE - sum(share for _, share in shares)))
            parts = [serving_pb2.ModelShare(model=name, share_basis_points=share) for name, share in shares]
            model_type.splits.add(region=region, shares=parts)

    def _upstream(self, place: _Place, draw: random.Random) -> list[str]:
        """Returns the types whose output one consumes: of its own funnel, now and then an older one's of the app."""
        funnel = place.funnel
        own = [funnel.name(architecture) for _, architecture in funnel.types[: place.position]]
        stage = funnel.types[place.position][0]
        if stage == pb.SOURCING:
            upstream = []
        elif stage == pb.EARLY_STAGE_RANKING:
            upstream = own
        else:
            upstream = own[-1:]
        if draw.random() < 0.15:
            older = self._same_app[funnel.app]
            # Those before this funnel: no circle can be made of them.
            end = bisect.bisect_left(older, place.number - place.position, key=lambda name: self._places[name].number)
            if end:
                upstream.append(older[draw.randrange(end)])
        return upstream


def generate(types: int, models_per_type: int = 20, seed: int = 0) -> Fleet:
    """Returns a synthetic fleet.

    Args:
        types: how many model types, 1 to 1,000,000.
        models_per_type: how many models a type has on average, 1 to 500.
        seed: another one gives another fleet.

    Raises:
        ValueError: a number is out of its range.
    """
    if not 1 <= types <= MAX_TYPES:
        raise ValueError(f"types must be 1 to {MAX_TYPES:,}, not {types:,}")
    if not 1 <= models_per_type <= MAX_MODELS_PER_TYPE:
        raise ValueError(f"models_per_type must be 1 to {MAX_MODELS_PER_TYPE:,}, not {models_per_type:,}")
    return Fleet(types, models_per_type, seed)


def registrable(model_type: pb.ModelType) -> pb.ModelType:
    """Returns a model type as it may be registered: TIER0 and TIER1 are granted afterwards, on request.

    It has TIER2 instead, and a label that says which it shall have.
    """
    made = pb.ModelType()
    made.CopyFrom(model_type)
    if made.tier in (serving_pb2.TIER0, serving_pb2.TIER1):
        made.labels[WANTED_TIER] = serving_pb2.Tier.Name(made.tier)
        made.tier = serving_pb2.TIER2
    return made


def is_synthetic(entry: pb.Team | pb.Region | pb.ModelType | pb.Model | assets_pb2.Asset) -> bool:
    """Says whether an entry of a registry says of itself that it is synthetic."""
    if isinstance(entry, pb.Region):
        return entry.agent_address.rpartition(":")[0].endswith(f".{DOMAIN}")
    return entry.labels.get(LABEL) == "true"


def _random(seed: int, *what: object) -> random.Random:
    """Returns a source of its own for one thing, so that nothing depends on how much there is of another."""
    return random.Random("/".join(map(str, (seed, *what))))


def _funnels(types: int, seed: int) -> list[_Funnel]:
    """Returns the funnels that together have at least so many types."""
    places = [(app, surface, placement) for app in _APPS for surface in _SURFACES for placement in _PLACEMENTS]
    _random(seed, "places").shuffle(places)
    funnels: list[_Funnel] = []
    founded: dict[str, int] = {}
    count = 0
    while count < types:
        number = len(funnels)
        draw = _random(seed, "funnel", number)
        round_, turn = divmod(number, len(places))
        app, surface, placement = places[turn]
        # The larger a team is, the more comes to it (a "Chinese restaurant"): sizes have a heavy tail.
        if draw.random() < _TEAMS / (_TEAMS + number):
            theme = f"{app}-{surface}"
            founded[theme] = founded.get(theme, 0) + 1
            team = f"teams/{theme}" if founded[theme] == 1 else f"teams/{theme}-{founded[theme]}"
        else:
            team = funnels[draw.randrange(number)].team
        sourcing = draw.sample(sorted(_SOURCING), draw.choices((1, 2, 3, 4), (35, 35, 20, 10))[0])
        late = draw.sample(sorted(_LATE), draw.choices((1, 2), (75, 25))[0])
        made = (
            *((pb.SOURCING, each) for each in sourcing),
            (pb.EARLY_STAGE_RANKING, draw.choice(sorted(_EARLY))),
            *((pb.LATE_STAGE_RANKING, each) for each in late),
        )
        cell = f"c{round_}" if round_ else ""
        funnels.append(_Funnel(app, surface, placement, cell, draw.random(), team, made))
        count += len(made)
    return funnels


def _team(name: str, seed: int, *, important: bool) -> pb.Team:
    draw = _random(seed, name)
    key = name.split("/")[1]
    people = [f"{person}-{key}" for person in draw.sample(_PEOPLE, draw.randint(3, len(_PEOPLE)))]
    lead, deputy, *engineers = people
    team = pb.Team(
        name=name,
        display_name=f"Synthetic: {key.replace('-', ' ')}",
        contacts=[f"#{key}", f"{lead}@{DOMAIN}"],
        role_bindings=[
            pb.RoleBinding(role=permission_pb2.OWNER, members=[lead]),
            pb.RoleBinding(role=permission_pb2.APPROVER, members=[lead, deputy]),
            pb.RoleBinding(role=permission_pb2.ENGINEER, members=[deputy, *engineers]),
            pb.RoleBinding(role=permission_pb2.ONCALL, members=[f"group:{key}-oncall"]),
        ],
        labels={LABEL: "true"},
    )
    # Some teams have nobody on call: none whose surfaces matter.
    if important or draw.random() > 0.4:
        team.on_call = f"pager-{key}"
    return team


def _demand(
    funnel: _Funnel, stage: pb.FunnelStage.ValueType, regions: Sequence[str], draw: random.Random
) -> pb.DemandSource | None:
    """Returns the peak by region: of a Pareto distribution over funnels. Some entries lack it."""
    if draw.random() < 0.05:
        return None
    peak = min(30.0 / (1.0 - funnel.importance) ** 0.9, 100_000.0)
    shares = {region: _REGIONS[region.split("/")[1]][0] for region in regions}
    return pb.DemandSource(
        stated=[
            pb.RegionDemand(region=region, peak_qps=round(peak * share / sum(shares.values()), 1))
            for region, share in shares.items()
        ],
        growth_basis_points=draw.choice((0, 500, 1000, 2000)),
        # A ranking request is split over several calls of a model.
        fanout_basis_points=_WHOLE if stage == pb.SOURCING else _WHOLE * draw.choice((1, 2, 4)),
    )


def _model(
    model_type: str,
    number: int,
    role: pb.Model.Role.ValueType,
    stage: pb.FunnelStage.ValueType,
    draw: random.Random,
) -> pb.Model:
    id_ = model_type.split("/")[1]
    model = pb.Model(
        name=_model_name(model_type, number),
        description=f"Synthetic: {draw.choice(_NEWS)}.",
        role=role,
        serving_spec=serving_pb2.ServingSpec(
            artifact=f"s3://models.{DOMAIN}/{id_}/v{number}/model",
            image=f"registry.{DOMAIN}/ranking/{id_}@sha256:{draw.getrandbits(256):064x}",
            flavor=f"flavors/{_FLAVORS[stage]}",
            units_per_replica=draw.choice((1, 1, 1, 2, 4)),
        ),
        training_flow=_training_flow(model_type),
        checkpoint=f"s3://checkpoints.{DOMAIN}/{id_}/{draw.getrandbits(48):012x}",
        labels={LABEL: "true"},
    )
    # What is only tried is not as critical as its type.
    if role == pb.Model.EXPERIMENT and draw.random() < 0.3:
        model.tier_override = serving_pb2.TIER4
    return model


def _model_name(model_type: str, number: int) -> str:
    return f"{model_type}/models/v{number}"


def _training_flow(model_type: str) -> str:
    return f"flow://training.{DOMAIN}/{model_type.split('/')[1]}"


def _asset(
    id_: str, kind: assets_pb2.Asset.Kind.ValueType, uri: str, team: str, model_types: Sequence[str]
) -> assets_pb2.Asset:
    return assets_pb2.Asset(
        name=f"assets/{id_}",
        kind=kind,
        uri=uri,
        display_name=f"Synthetic: {id_}",
        team=team,
        model_types=model_types,
        labels={LABEL: "true"},
    )
