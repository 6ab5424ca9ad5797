"""Any table as an evaluation report: a mapping says what its columns are.

A mapping is a report as it is written in a file, but that `results` is what each row gives: one result, or a list of
several. In there `{column: NAME}` stands for the row's value in a column, everything else is constant. `values: {…}`
translates what a column holds, `default:` stands in for an empty cell; without one an empty cell leaves the field out.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import click
import yaml

from modelfleet.cli.resources import parse
from modelfleet.registry.v1 import evidence_pb2 as pb

_REFERENCE: Final = frozenset({"column", "values", "default"})
_NOTHING: Final = object()


def read_mapping(file: str, text: str) -> dict[str, Any]:
    """A mapping.

    Raises:
        click.UsageError: it is not one.
    """
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise click.UsageError(f"{file} is not YAML: {error}") from None
    if not isinstance(data, dict) or not isinstance(data.get("results"), (dict, list)):
        raise click.UsageError(
            f"{file} is no mapping; it is a report whose `results` say what each row gives: "
            "results: {metric: auc, value: {column: auc}, direction: HIGHER_IS_BETTER}"
        )
    return data


def report_of(mapping: Mapping[str, Any], files: Sequence[tuple[str, str]]) -> pb.EvaluationReport:
    """The report that rows give by a mapping.

    Args:
        mapping: from `read_mapping`.
        files: name and text of each: CSV with a header, JSON (a list of objects) or JSON Lines.

    Raises:
        click.UsageError: a file or row does not fit; says which.
    """
    report = pb.EvaluationReport()
    parse({key: value for key, value in mapping.items() if key != "results"}, report)
    templates = mapping["results"] if isinstance(mapping["results"], list) else [mapping["results"]]
    for file, text in files:
        for where, row in _rows(file, text):
            for template in templates:
                try:
                    filled = _fill(template, row)
                    parse({} if filled is _NOTHING else _worded(filled), report.results.add())
                except click.UsageError as error:
                    raise click.UsageError(f"{where}: {error.format_message()}") from None
    return report


def _rows(file: str, text: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The rows of a file, and where each stands."""
    if file.lower().endswith((".json", ".jsonl", ".ndjson")):
        yield from _json_rows(file, text)
        return
    reader = csv.DictReader(io.StringIO(text), strict=True)
    try:
        for row in reader:
            if None in row or None in row.values():
                raise click.UsageError(f"{file}, line {reader.line_num}: it has not as many cells as the header")
            yield f"{file}, line {reader.line_num}", row
    except csv.Error as error:
        raise click.UsageError(f"{file}, line {reader.line_num}: {error}") from None


def _json_rows(file: str, text: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    try:
        data = json.loads(text)
        found = [(f"{file}, entry {n}", row) for n, row in enumerate(data if isinstance(data, list) else [data], 1)]
    except ValueError:
        lines = ((number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip())
        found = [(f"{file}, line {number}", _loaded(file, number, line)) for number, line in lines]
    for where, row in found:
        if not isinstance(row, dict):
            raise click.UsageError(f'{where}: expected an object, such as {{"metric": "auc", "value": 0.8}}')
        yield where, row


def _loaded(file: str, number: int, line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise click.UsageError(f"{file}, line {number}: it is not JSON: {error}") from None


def _fill(template: Any, row: Mapping[str, Any]) -> Any:
    """A template with the row's values in it; `_NOTHING` where a cell is empty."""
    if isinstance(template, dict):
        if "column" in template and template.keys() <= _REFERENCE:
            return _cell(template, row)
        filled = {key: _fill(value, row) for key, value in template.items()}
        kept = {key: value for key, value in filled.items() if value is not _NOTHING}
        return kept if kept or not filled else _NOTHING
    if isinstance(template, list):
        return [value for value in (_fill(each, row) for each in template) if value is not _NOTHING]
    return template


def _worded(result: dict[str, Any]) -> dict[str, Any]:
    """Slices and conditions are words, also where a JSON file has numbers."""
    for name in ("slice", "conditions"):
        if isinstance(result.get(name), dict):
            result[name] = {key: value if isinstance(value, str) else str(value) for key, value in result[name].items()}
    return result


def _cell(reference: Mapping[str, Any], row: Mapping[str, Any]) -> Any:
    name = str(reference["column"])
    value: Any = row
    for part in [name] if name in row else name.split("."):
        if not isinstance(value, dict) or part not in value:
            raise click.UsageError(f"there is no column '{name}'; there are: {', '.join(map(str, row))}")
        value = value[part]
    if value is None or value == "":
        return reference.get("default", _NOTHING)
    known = reference.get("values")
    if known is None:
        return value
    if value not in known:
        raise click.UsageError(f"column '{name}' holds {value!r}, and `values` has {', '.join(map(repr, known))}")
    return known[value]
