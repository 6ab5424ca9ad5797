"""Import of somebody's own list of models: rows become entries, and what is doubtful is found before it is written."""

from __future__ import annotations

import csv
import enum
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeAlias

from google.protobuf.json_format import ParseDict, ParseError
from google.protobuf.message import Message

from modelfleet.code.documents import Document, document_of, join, leaves
from modelfleet.code.kinds import MODEL, MODEL_TYPE, Kind, parent_of, references_of
from modelfleet.code.plan import consumed_first
from modelfleet.registry.v1 import registry_pb2 as pb

MAX_ROWS: Final = 200_000
_MOST_IN_BATCH: Final = 500
_BATCH_BYTES: Final = 1 << 20
_COLUMN: Final = re.compile(r"\$\{([^}]+)\}")
_LONGEST_ID: Final = 63

Values: TypeAlias = Mapping[str, Any]


class WrongInput(Exception):
    """A file or mapping that cannot be read at all."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a list, and where it stands."""

    place: str
    values: Values


# Reading rows.


def csv_rows(path: Path) -> Iterator[Row]:
    """Yields the rows of a CSV file with a header. Raises WrongInput."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        try:
            for values in reader:
                if None in values:
                    raise WrongInput(f"{path}:{reader.line_num}: has more fields than the header")
                yield Row(f"{path}:{reader.line_num}", values)
        except csv.Error as error:
            raise WrongInput(f"{path}:{reader.line_num}: is not CSV: {error}") from None


def jsonl_rows(path: Path) -> Iterator[Row]:
    """Yields the objects of a file with one JSON object a line. Raises WrongInput."""
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    values = json.loads(line)
                except ValueError as error:
                    raise WrongInput(f"{path}:{number}: is not JSON: {error}") from None
                if not isinstance(values, dict):
                    raise WrongInput(f'{path}:{number}: must be an object, such as {{"id": "v1"}}')
                yield Row(f"{path}:{number}", values)


# From rows to entries.


def filled(template: Any, values: Values) -> Any:
    """Returns a template with the columns of a row in it; None where a column that it needs is empty.

    `${column}` alone gives the value as it is; within a text, its text. `${tags.owner}` looks into objects.

    Raises:
        KeyError: there is no such column.
    """
    if isinstance(template, dict):
        made = {key: filled(each, values) for key, each in template.items()}
        return {key: each for key, each in made.items() if each not in (None, {}, [])}
    if isinstance(template, list):
        return [each for item in template if (each := filled(item, values)) not in (None, {})]
    if not isinstance(template, str):
        return template
    whole = _COLUMN.fullmatch(template)
    if whole is not None:
        value = _column(whole[1], values)
        return value if value != "" else None
    found = [_column(name, values) for name in _COLUMN.findall(template)]
    if any(value in (None, "") for value in found):
        return None
    texts = iter(map(str, found))
    return _COLUMN.sub(lambda _: next(texts), template)


def _column(name: str, values: Values) -> Any:
    if name in values:
        return values[name]
    value: Any = values
    for part in name.split("."):
        if not isinstance(value, Mapping):
            return None
        if part not in value:
            if value is values:
                raise KeyError(name)
            return None
        value = value[part]
    return value


def valid_id(text: str, first: str) -> str:
    """Returns the id that a name becomes.

    Lower case; each run of other characters than a to z, 0 to 9, `_` and `-` becomes one `_`, none at the ends; `first`
    goes before what does not begin with a letter; cut after 63 characters.
    """
    made = re.sub(r"[^a-z0-9_-]+", "_", text.strip().lower()).strip("_-")
    if made and not made[0].isalpha():
        made = first + made
    return made[:_LONGEST_ID]


def _valid_reference(name: str) -> str:
    parts = name.split("/")
    return "/".join(part if index % 2 == 0 else valid_id(part, "x") for index, part in enumerate(parts))


class Doubt(enum.Enum):
    """What is doubtful of a row."""

    INVALID = "cannot be read"
    DUPLICATE = "is there twice"
    COLLISION = "another name becomes the same id"
    DISAGREES = "says otherwise"
    SAME_URI = "another one has the same URI"
    LOOKALIKE = "differs by case or separators only"
    IN_LEDGER = "is otherwise in the ledger"


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that a person should look at before a row is written."""

    kind: Doubt
    place: str
    name: str
    text: str


@dataclass
class Candidate:
    """An entry that rows describe."""

    kind: Kind
    name: str
    given: str
    """The id as the list has it."""
    place: str
    message: Message
    document: Document


@dataclass
class Import:
    """What rows come to."""

    types: dict[str, Candidate] = field(default_factory=dict)
    models: dict[str, Candidate] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    renamed: dict[str, str] = field(default_factory=dict)
    """Names whose ids had to be made valid, and how the list has them."""

    def candidate(self, name: str) -> Candidate | None:
        """Returns what is to be written under a name."""
        return self.types.get(name) or self.models.get(name)

    def leave_out_doubtful(self) -> set[str]:
        """Leaves out what findings are about, the models of types with it; returns the names.

        Of a model that is there twice the same the first one stays; a type that is otherwise in the ledger stays as it
        is there, and its models are its models.
        """
        left_out = set()
        for finding in self.findings:
            if finding.kind is not Doubt.DUPLICATE:
                left_out.add(finding.name)
            if finding.kind not in (Doubt.DUPLICATE, Doubt.IN_LEDGER):
                left_out |= {name for name in self.models if parent_of(name) == finding.name}
        for name in left_out:
            self.types.pop(name, None)
            self.models.pop(name, None)
        return left_out


def read_rows(rows: Iterable[Row], mapping: Mapping[str, Any]) -> Import:
    """Returns the entries that rows describe.

    Args:
        rows: of the list.
        mapping: `type` and `model`: templates of the fields of the protos, and of `id`.

    Raises:
        WrongInput: the mapping names a column that is not there, or there are too many rows.
    """
    for part in ("type", "model"):
        if not isinstance(mapping.get(part), dict) or "id" not in mapping[part]:
            raise WrongInput(f"the mapping needs {part}.id, such as --map '{part}.id=${{{part}}}'")
    unknown = sorted(set(mapping) - {"type", "model"})
    if unknown:
        raise WrongInput(f"the mapping has no part '{unknown[0]}'; there are: type, model")
    found = Import()
    for count, row in enumerate(rows):
        if count == MAX_ROWS:
            raise WrongInput(f"{row.place}: is beyond {MAX_ROWS:,} rows; import them in parts")
        try:
            type_fields, model_fields = filled(mapping["type"], row.values), filled(mapping["model"], row.values)
        except KeyError as error:
            columns = ", ".join(map(str, row.values))
            raise WrongInput(f"{row.place}: has no column {error.args[0]!r}; there are: {columns}") from None
        _add_row(found, row, type_fields, model_fields)
    _look_alike(found)
    _same_uri(found)
    return found


def _add_row(found: Import, row: Row, type_fields: Document, model_fields: Document) -> None:
    given = str(type_fields.pop("id", "")), str(model_fields.pop("id", ""))
    type_id, model_id = valid_id(given[0], "t"), valid_id(given[1], "v")
    if not type_id or not model_id:
        what = "type" if not type_id else "model"
        found.findings.append(Finding(Doubt.INVALID, row.place, "", f"the {what} has no id"))
        return
    type_name = f"modelTypes/{type_id}"
    model_name = f"{type_name}/models/{model_id}"
    try:
        model_type = _candidate(MODEL_TYPE, type_name, given[0], row.place, type_fields)
        model = _candidate(MODEL, model_name, given[1], row.place, model_fields)
    except ParseError as error:
        text = str(error).removeprefix("Failed to parse ")
        found.findings.append(Finding(Doubt.INVALID, row.place, model_name, text))
        return
    _add(found, found.types, model_type, again=False)
    _add(found, found.models, model, again=True)


def _candidate(kind: Kind, name: str, given: str, place: str, fields: Document) -> Candidate:
    message = ParseDict({**fields, "name": name}, kind.message())
    _make_references_valid(message)
    return Candidate(kind, name, given, place, message, document_of(message))


def _make_references_valid(message: Any) -> None:
    """Names in a list are made valid like ids: `teams/Feed Ranking` is the team feed_ranking."""
    for path, _, name in list(references_of(message)):
        made = _valid_reference(name)
        if made != name:
            *parents, last = path.split(".")
            target = message
            for parent in parents:
                target = getattr(target, parent)
                if not hasattr(target, "DESCRIPTOR"):
                    return  # inside a list: the registry says what is wrong with it
            value = getattr(target, last)
            if isinstance(value, str):
                setattr(target, last, made)
            else:
                value[:] = [_valid_reference(each) for each in value]


def _add(found: Import, known: dict[str, Candidate], new: Candidate, *, again: bool) -> None:
    if new.given != new.name.rsplit("/", 1)[-1]:
        found.renamed[new.name] = new.given
    other = known.setdefault(new.name, new)
    if other is new:
        return
    if other.given != new.given:
        text = f"'{new.given}' becomes the same id as '{other.given}' in {other.place}"
        found.findings.append(Finding(Doubt.COLLISION, new.place, new.name, text))
    elif other.document != new.document:
        fields = ", ".join(_differing(other, new.document))
        found.findings.append(Finding(Doubt.DISAGREES, new.place, new.name, f"and {other.place} differ in {fields}"))
    elif again:
        found.findings.append(Finding(Doubt.DUPLICATE, new.place, new.name, f"stands in {other.place} as well"))


def _differing(known: Candidate, other: Document) -> list[str]:
    descriptor = known.kind.message.DESCRIPTOR
    one, two = dict(leaves(known.document, descriptor)), dict(leaves(other, descriptor))
    return [join(path) for path in dict.fromkeys((*one, *two)) if one.get(path) != two.get(path)]


def _look_alike(found: Import) -> None:
    for candidates in (found.types, found.models):
        by_key: dict[str, Candidate] = {}
        for candidate in candidates.values():
            other = by_key.setdefault(_likeness(candidate.name), candidate)
            if other is not candidate:
                text = f"differs from {other.name} in {other.place} by separators only"
                found.findings.append(Finding(Doubt.LOOKALIKE, candidate.place, candidate.name, text))


def _likeness(name: str) -> str:
    """Returns what look-alikes have in common; models of different types are none."""
    parent, _, last = name.rpartition("/")
    return f"{parent}/{re.sub(r'[^a-z0-9]', '', last)}"


def _uris(message: Any) -> Iterator[str]:
    yield from {uri for uri in (message.serving_spec.artifact, message.checkpoint) if uri}


def _same_uri(found: Import) -> None:
    """Notes models that have the artifact or checkpoint of another one in the list."""
    taken: dict[str, Candidate] = {}
    for candidate in found.models.values():
        for uri in _uris(candidate.message):
            other = taken.setdefault(uri, candidate)
            if other is not candidate:
                text = f"has the URI {uri} of {other.name} in {other.place}"
                found.findings.append(Finding(Doubt.SAME_URI, candidate.place, candidate.name, text))


def _same_uri_as(found: Import, models: Iterable[Any]) -> None:
    """Notes models that have the artifact or checkpoint of another one in the ledger."""
    taken = {uri: model.name for model in models for uri in _uris(model)}
    for candidate in found.models.values():
        for uri in _uris(candidate.message):
            other = taken.get(uri, candidate.name)
            listed = found.models.get(other)
            # Where the other one is in the list with it as well, that was noted already.
            if other != candidate.name and (listed is None or uri not in _uris(listed.message)):
                text = f"has the URI {uri} of {other} in the ledger"
                found.findings.append(Finding(Doubt.SAME_URI, candidate.place, candidate.name, text))


# Against the ledger.


def compare(found: Import, ledger: Mapping[str, Message]) -> None:
    """Notes what is in the ledger otherwise, and leaves out what is there already, the same.

    Args:
        found: of the rows.
        ledger: all teams, regions, types and models, by name.
    """
    there = {_likeness(name): name for name in ledger if name.startswith("modelTypes/")}
    same = []
    for candidate in [*found.types.values(), *found.models.values()]:
        current = ledger.get(candidate.name)
        if current is not None:
            differing = _contradicted(candidate, document_of(current))
            if differing:
                text = "; ".join(differing)
                found.findings.append(Finding(Doubt.IN_LEDGER, candidate.place, candidate.name, text))
            else:
                same.append(candidate.name)
        elif (other := there.get(_likeness(candidate.name))) is not None:
            text = f"differs from {other} in the ledger by separators only"
            found.findings.append(Finding(Doubt.LOOKALIKE, candidate.place, candidate.name, text))
        _expect_owner(found, candidate, ledger)
    _same_uri_as(found, (each for each in ledger.values() if isinstance(each, pb.Model)))
    for name in same:
        found.types.pop(name, None)
        found.models.pop(name, None)


def _contradicted(candidate: Candidate, current: Document) -> list[str]:
    """Returns the fields that the list states and the ledger has otherwise."""
    descriptor = candidate.kind.message.DESCRIPTOR
    now = dict(leaves(current, descriptor))
    return [
        f"{join(path)} is {now.get(path)!r} there and {value!r} here"
        for path, value in leaves(candidate.document, descriptor)
        if now.get(path) != value
    ]


def _expect_owner(found: Import, candidate: Candidate, ledger: Mapping[str, Message]) -> None:
    for path, _, name in references_of(candidate.message):
        if name.startswith(("teams/", "regions/")) and name not in ledger:
            text = f"{path}: {name} does not exist; create it first"
            found.findings.append(Finding(Doubt.INVALID, candidate.place, candidate.name, text))


# Writing.


def batches(found: Import) -> Iterator[list[pb.EntryChange]]:
    """Yields changes in batches, each of whole types as far as they fit; types that others consume come first.

    Models that have a role stand first below their type, so that it is adopted with them.
    """
    upstream = {name: list(each.document.get("upstream_types", ())) for name, each in found.types.items()}
    by_type: dict[str, list[Candidate]] = {name: [] for name in consumed_first(upstream)}
    for candidate in found.models.values():
        by_type.setdefault(parent_of(candidate.name), []).append(candidate)
    batch: list[pb.EntryChange] = []
    size = 0
    for name, models in by_type.items():
        group = [found.types[name]] if name in found.types else []
        group += sorted(models, key=lambda each: "role" not in each.document)
        changes = [_change(each) for each in group]
        total = sum(change.ByteSize() for change in changes)
        if batch and (len(batch) + len(changes) > _MOST_IN_BATCH or size + total > _BATCH_BYTES):
            yield batch
            batch, size = [], 0
        for change in changes:
            if batch and (len(batch) == _MOST_IN_BATCH or size + change.ByteSize() > _BATCH_BYTES):
                yield batch
                batch, size = [], 0
            batch.append(change)
            size += change.ByteSize()
    if batch:
        yield batch


def _change(candidate: Candidate) -> pb.EntryChange:
    made: Any = {candidate.kind.field: candidate.message}
    return pb.EntryChange(**made)


def merged(one: Mapping[str, Any], two: Mapping[str, Any]) -> dict[str, Any]:
    """Returns two mappings as one, the second one's fields on top."""
    made = dict(one)
    for key, value in two.items():
        below = made.get(key)
        made[key] = merged(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return made
