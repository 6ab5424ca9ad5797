"""The index of lists against looking at every entry, for any sequence of changes, filter, order and page."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from google.protobuf.struct_pb2 import Struct
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given, settings
from hypothesis import strategies as st

from modelfleet.common.v1 import serving_pb2
from modelfleet.registry.v1 import classification_pb2, evidence_pb2
from modelfleet.registry.v1 import registry_pb2 as pb
from modelfleetd.errors import InvalidFields
from modelfleetd.kit import filter as filters
from modelfleetd.kit.ordering import Order
from modelfleetd.registry import columns, row_masks
from modelfleetd.registry.api.base import fits_of
from modelfleetd.registry.snapshot import MODEL_TYPES, MODELS_OF_ALL, Snapshot, models_of

KEYS = ["a", "b", "c"]
Said = Callable[[Any], bool]


@pytest.fixture(scope="module", autouse=True)
def _few_are_many() -> Iterator[None]:
    """Lets a handful of entries go every way that otherwise takes hundreds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(columns, "_MOST_SPARSE", 2)
        patch.setattr(row_masks, "_FIRST_CHUNK", 2)
        yield


def struct(**values: Any) -> Struct:
    made = Struct()
    made.update(values)
    return made


keys = st.sampled_from(KEYS)
labels = st.dictionaries(keys, st.sampled_from(["x", "xy", ""]), max_size=2)
times = st.integers(1, 5).map(lambda seconds: Timestamp(seconds=seconds, nanos=1000))
attributes = st.builds(
    struct, qps=st.sampled_from([1, 2.5, "2.5", True, None]), note=st.sampled_from(["x", "yx", 3, [1]])
)
types = st.builds(
    lambda key, **fields: pb.ModelType(name=f"modelTypes/{key}", **fields),
    keys,
    team=st.sampled_from(["teams/feed", "teams/ads"]),
    tier=st.integers(0, 3),
    predictions=st.lists(keys.map(lambda key: pb.Prediction(id=key)), max_size=2),
    labels=labels,
    attributes=attributes,
    create_time=times,
)
models = st.builds(
    lambda of, key, flavor, **fields: pb.Model(
        name=f"modelTypes/{of}/models/{key}", serving_spec=serving_pb2.ServingSpec(flavor=f"flavors/{flavor}"), **fields
    ),
    keys,
    st.sampled_from(["a", "b", "c", "d", "ab"]),
    keys,
    description=st.sampled_from(["", "Some text", "other"]),
    role=st.integers(0, 5),
    checkpoint=st.sampled_from(["", "s3://x/1", "s3://x/2", "s3://y/1"]),
    tier_override=st.integers(0, 3),
    labels=labels,
    attributes=attributes,
    create_time=times,
    update_time=times,
)
schemas = st.builds(
    lambda key, target, filterable: classification_pb2.ExtensionSchema(
        name=f"extensionSchemas/{key}",
        target=target,
        filterable=filterable,
        schema=struct(type="object", properties={"qps": {"type": "number"}, "note": {"type": "string"}}),
    ),
    keys,
    st.sampled_from([1, 2]),
    st.lists(st.sampled_from(["qps", "note"]), unique=True),
)
# What is there afterwards, and what goes.
steps = st.lists(
    st.one_of(
        types,
        models,
        models,
        schemas,
        st.builds("modelTypes/{}".format, keys),
        st.builds("modelTypes/{}/models/{}".format, keys, keys),
        st.builds("extensionSchemas/{}".format, keys),
    ),
    max_size=40,
)

# Comparisons, and what they say in Python.
OF_BOTH: list[tuple[str, Said]] = [
    ("name:b", lambda m: "b" in m.name),
    ("name = modelTypes/a*", lambda m: m.name.startswith("modelTypes/a")),
    ('name = "*b"', lambda m: m.name.endswith("b")),
    ("name = modelTypes/a", lambda m: m.name == "modelTypes/a"),
    ("name:*", lambda m: True),
    ("labels.a = x", lambda m: m.labels.get("a") == "x"),
    ("labels.b:x", lambda m: "x" in m.labels.get("b", "")),
    ("labels.c:*", lambda m: "c" in m.labels),
    ("labels:*", lambda m: bool(m.labels)),
    ("create_time > 1970-01-01T00:00:03Z", lambda m: m.create_time.seconds >= 3),
    ('create_time = "1970-01-01T00:00:02.000001Z"', lambda m: m.create_time.seconds == 2),
]
OF_TYPES: list[tuple[str, Said]] = [
    *OF_BOTH,
    ("team = feed", lambda m: m.team == "teams/feed"),
    ("team:AD", lambda m: m.team == "teams/ads"),
    ("tier <= TIER1", lambda m: m.tier in (1, 2)),
    ("tier:*", lambda m: m.tier != 0),
    ("tier != TIER0", lambda m: m.tier != 1),
    ("predictions.id:a", lambda m: any(each.id == "a" for each in m.predictions)),
    ("update_time:*", lambda m: False),
]
OF_MODELS: list[tuple[str, Said]] = [
    *OF_BOTH,
    ("model_type = a", lambda m: m.name.startswith("modelTypes/a/")),
    ("role = BASELINE", lambda m: m.role == 2),
    ("role >= HOLDOUT", lambda m: m.role >= 3),
    ("serving_spec.flavor = a", lambda m: m.serving_spec.flavor == "flavors/a"),
    ("description:TEXT", lambda m: "text" in m.description.lower()),
    ("description:*", lambda m: m.description != ""),
    ("description = other", lambda m: m.description == "other"),
    ("checkpoint = s3://x/*", lambda m: m.checkpoint.startswith("s3://x/")),
    ('checkpoint = ""', lambda m: not m.checkpoint),
    ("tier_grant.overdue = false", lambda m: True),
]
OF_ATTRIBUTES: list[tuple[str, str, Said]] = [
    ("attributes.qps > 1", "qps", lambda m: isinstance(m.attributes["qps"], float) and m.attributes["qps"] > 1),
    ("attributes.qps = 2.5", "qps", lambda m: m.attributes["qps"] == 2.5),
    ("attributes.note:X", "note", lambda m: isinstance(m.attributes["note"], str) and "x" in m.attributes["note"]),
]
ORDERS: dict[str, Callable[[Any], Any]] = {
    "name": lambda m: m.name,
    "create_time": lambda m: (m.create_time.seconds or 99, m.name),
    "update_time": lambda m: (m.update_time.seconds or 99, m.name),
    "tier": lambda m: (m.tier or 99, m.name),
    "tier_override": lambda m: (m.tier_override or 99, m.name),
}


class Everything:
    """All entries in a dict."""

    def __init__(self) -> None:
        self.entries: dict[str, Any] = {}

    def filterable(self, target: int) -> set[str]:
        found = [each for name, each in self.entries.items() if name.startswith("extensionSchemas/")]
        return {key for each in found if each.target == target for key in each.filterable}

    def types(self) -> list[Any]:
        return [each for name, each in self.entries.items() if name.startswith("modelTypes/") and name.count("/") == 1]

    def models(self) -> list[Any]:
        return [each for name, each in self.entries.items() if name.count("/") == 3]


def apply(snapshot: Snapshot, everything: Everything, step: Any) -> None:
    """One revision, as the stream of them has it; none where it would leave a model without its type."""
    name = step if isinstance(step, str) else step.name
    if isinstance(step, pb.Model) and name.rpartition("/models/")[0] not in everything.entries:
        return
    if isinstance(step, str) and any(each.startswith(f"{name}/models/") for each in everything.entries):
        return
    change = pb.ResourceChange(resource=name)
    if isinstance(step, str):
        if name not in everything.entries:
            return
        del everything.entries[name]
    else:
        kinds = {pb.Model: "model", pb.ModelType: "model_type", classification_pb2.ExtensionSchema: "extension_schema"}
        getattr(change, kinds[type(step)]).CopyFrom(step)
        everything.entries[name] = step
    snapshot.apply(pb.Revision(number=snapshot.revision + 1, changes=[change]))


@st.composite
def expressions(draw: st.DrawFn, leaves: Sequence[tuple[str, Said]]) -> tuple[str, Said]:
    """A filter, and what it says in Python."""
    shape = draw(st.sampled_from(["leaf", "leaf", "not", "and", "or"]))
    if shape == "leaf":
        return draw(st.sampled_from(leaves))
    text, said = draw(expressions(leaves))
    if shape == "not":
        return f"NOT ({text})", lambda m: not said(m)
    other, too = draw(expressions(leaves))
    if shape == "and":
        return f"({text}) ({other})", lambda m: said(m) and too(m)
    return f"({text}) OR ({other})", lambda m: said(m) or too(m)


def listed(snapshot: Snapshot, collection: str, text: str, order: Order, size: int) -> list[str]:
    """All pages, one after the other."""
    found = snapshot.index_of(collection)
    where = filters.read(text, found.fields)
    names: list[str] = []
    after = None
    while True:
        page = snapshot.page(collection, after, size, where, order)
        assert len(page) <= size
        names += page
        if len(page) < size:
            return names
        after = found.position(page[-1], order)


@settings(max_examples=100)
@given(steps, st.data())
def test_a_list_holds_what_looking_at_every_entry_finds(steps: list[Any], data: st.DataObject) -> None:
    everything, changed = Everything(), Snapshot()
    for step in [*(pb.ModelType(name=f"modelTypes/{key}", team="teams/feed") for key in KEYS), *steps]:
        apply(changed, everything, step)
    loaded = Snapshot.of(everything.entries.values(), changed.revision, b"")
    for _ in range(3):
        of_models = data.draw(st.booleans())
        kind = "models" if of_models else "types"
        allowed = everything.filterable(2 if of_models else 1)
        leaves = [
            *(OF_MODELS if of_models else OF_TYPES),
            *((text, guarded(key, said)) for text, key, said in OF_ATTRIBUTES if key in allowed),
        ]
        if of_models:
            leaves += [(f"model_type.{text}", of_the_type(everything, said)) for text, said in OF_TYPES]
        text, said = data.draw(expressions(leaves) | st.just(("", lambda m: True)))
        if text.count(":") + text.count("*") + text.count("description") > filters.MAX_SEARCHES:
            continue
        by = data.draw(st.sampled_from([each for each in ORDERS if each != ("tier" if of_models else "tier_override")]))
        order = Order(by, data.draw(st.booleans()))
        parent = data.draw(st.sampled_from(["-", *KEYS])) if of_models else ""
        entries = everything.models() if of_models else everything.types()
        expected = sorted(
            (each for each in entries if parent in ("", "-") or each.name.startswith(f"modelTypes/{parent}/")),
            key=ORDERS[by],
            reverse=order.descending,
        )
        names = [each.name for each in expected if said(each)]
        collection = models_of(f"modelTypes/{parent}") if of_models else MODEL_TYPES
        size = data.draw(st.integers(1, 4))
        for snapshot in (changed, loaded):
            assert listed(snapshot, collection, text, order, size) == names, (kind, text, order)


def guarded(key: str, said: Said) -> Said:
    return lambda m: key in m.attributes and said(m)


def of_the_type(everything: Everything, said: Said) -> Said:
    """What is said of a model's type."""
    return lambda m: said(everything.entries[m.name.rpartition("/models/")[0]])


@settings(max_examples=30)
@given(st.lists(schemas, max_size=4), st.data())
def test_attributes_can_be_filtered_by_while_a_schema_says_so(made: list[Any], data: st.DataObject) -> None:
    everything, snapshot = Everything(), Snapshot()
    for step in [data.draw(types), data.draw(models), *made, *(f"extensionSchemas/{key}" for key in KEYS)]:
        apply(snapshot, everything, step)
        for collection, target in ((MODEL_TYPES, 1), (MODELS_OF_ALL, 2)):
            for key in ("qps", "note"):
                fields = snapshot.index_of(collection).fields
                if key in everything.filterable(target):
                    assert filters.read(f"attributes.{key}:*", fields) is not None
                else:
                    with pytest.raises(InvalidFields, match="cannot be filtered by"):
                        filters.read(f"attributes.{key}:*", fields)
                assert (f"model_type.attributes.{key}" in fields) == (target == 2 and key in everything.filterable(1))


def test_thousands_of_entries_are_found_as_a_few_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "_MOST_SPARSE", 256)
    monkeypatch.setattr(row_masks, "_FIRST_CHUNK", 1024)
    chance = random.Random(7)

    def model(number: int) -> pb.Model:
        spec = serving_pb2.ServingSpec(flavor=f"flavors/f{chance.randrange(5)}")
        return pb.Model(
            name=f"modelTypes/t{number // 20}/models/m{number % 20}",
            role=chance.randrange(6),  # type: ignore[arg-type]
            serving_spec=spec,
            checkpoint=f"s3://c/{chance.randrange(900)}",
            labels={"site": f"s{chance.randrange(40)}"},
            update_time=Timestamp(seconds=chance.randrange(1000)),
        )

    types = [pb.ModelType(name=f"modelTypes/t{number}") for number in range(250)]
    everything, snapshot = Everything(), Snapshot.of([*types, *map(model, range(4000))], 1, b"")
    everything.entries = {**snapshot.model_types, **snapshot.models}
    for number in chance.sample(range(5000), 1500):
        step = model(number)
        apply(snapshot, everything, step if chance.random() < 0.7 else step.name)
    cases: list[tuple[str, Said]] = [
        ("role = BASELINE serving_spec.flavor = f1 labels.site = s7", lambda m: _is(m, 2, "f1", "s7")),
        (
            "checkpoint = s3://c/17 OR labels.site = s3",
            lambda m: m.checkpoint.endswith("/17") or m.labels["site"] == "s3",
        ),
        ("NOT role = RETIRED AND checkpoint:99", lambda m: m.role != 5 and "99" in m.checkpoint),
    ]
    for text, said in cases:
        for by in ("name", "update_time"):
            for descending in (False, True):
                expected = sorted(everything.models(), key=ORDERS[by], reverse=descending)
                names = [each.name for each in expected if said(each)]
                assert names, "the case finds something"
                assert listed(snapshot, MODELS_OF_ALL, text, Order(by, descending), 100) == names


def _is(m: Any, role: int, flavor: str, site: str) -> bool:
    return (m.role, m.serving_spec.flavor, m.labels["site"]) == (role, f"flavors/{flavor}", site)


@settings(max_examples=50)
@given(st.lists(st.one_of(types, models, schemas), max_size=12), st.data())
def test_what_is_read_from_the_database_is_filtered_as_what_is_indexed(made: list[Any], data: st.DataObject) -> None:
    everything, snapshot = Everything(), Snapshot()
    for step in [*(pb.ModelType(name=f"modelTypes/{key}") for key in KEYS), *made]:
        apply(snapshot, everything, step)
    for kind, target, collection, entries, leaves in (
        (pb.ModelType, 1, MODEL_TYPES, everything.types(), OF_TYPES),
        (pb.Model, 2, MODELS_OF_ALL, everything.models(), OF_MODELS),
    ):
        allowed = everything.filterable(target)
        more = [(text, said) for text, key, said in OF_ATTRIBUTES if key in allowed]
        text, _ = data.draw(expressions([*leaves, *more]))
        if text.count(":") + text.count("*") + text.count("description") > filters.MAX_SEARCHES:
            continue
        request: Any = SimpleNamespace(filter=text, order_by="name")
        fits: Any = fits_of(request, snapshot, kind)
        expected = sorted(each.name for each in entries if fits(each))
        assert listed(snapshot, collection, text, Order(), 3) == expected


def test_what_is_read_from_the_database_has_the_order_of_names() -> None:
    for kind in (evidence_pb2.EvaluationReport, evidence_pb2.RiskAssessment, pb.Team):
        request: Any = SimpleNamespace(filter="", order_by="")
        assert fits_of(request, Snapshot(), kind) is None
        request.order_by, request.filter = "create_time", "nothing = 1"
        with pytest.raises(InvalidFields) as raised:
            fits_of(request, Snapshot(), kind)
        assert [each.path for each in raised.value.violations] == ["filter", "order_by"]
    report = evidence_pb2.EvaluationReport(
        name="x", suite="fmeval", results=[evidence_pb2.EvaluationResult(metric="accuracy")]
    )
    for text, expected in (("suite = fmeval results.metric:acc*", True), ("NOT results.metric:accuracy", False)):
        fits = fits_of(SimpleNamespace(filter=text, order_by=""), Snapshot(), evidence_pb2.EvaluationReport)
        assert fits is not None and fits(report) == expected
