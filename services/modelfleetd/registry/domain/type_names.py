"""Ids of model types in the ledger: what the naming schemes in force make of them, and how schemes change."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from modelfleetd import names
from modelfleetd.errors import FieldViolation, invalid
from modelfleetd.registry.domain.edits import changed, created, current, deleted, refuse_existing
from modelfleetd.registry.domain.ledger import Ledger
from modelfleetd.registry.domain.masks import merge
from modelfleetd.registry.domain.naming import (
    DEFAULT_SEPARATOR,
    NamingField,
    NamingScheme,
    closest,
    grammar,
    in_order,
    parsed,
    problems,
)
from modelfleetd.registry.domain.patterns import what_is_wrong_with
from modelfleetd.registry.domain.revisions import Edit, Edits
from modelfleetd.registry.domain.rules import MAX_PROSE, MAX_TEXT
from modelfleetd.registry.domain.violations import Violations

MAX_FIELDS: Final = 20
MAX_WORDS: Final = 1000
# Of all fields: a scheme travels in one message, three times in each of its revisions.
MAX_WORDS_IN_ALL: Final = 3000
# Each new model type is held against all of them.
MAX_SCHEMES: Final = 50

_WORD = re.compile(r"[a-z0-9_-]{1,63}")


def naming(ledger: Ledger, name: str) -> Mapping[str, str]:
    """Returns the words of a model type's id by field, by the first scheme that it fits; empty where it fits none."""
    return parsed(_id(name), ledger.every(NamingScheme))[1]


def wrong_id(ledger: Ledger, name: str) -> list[FieldViolation]:
    """Returns why the id of a new model type fits no enforced scheme; nothing where it fits one, or there is none.

    It names what is wrong by the scheme that the id comes closest to, and what would be accepted.
    """
    misfit = _misfit(_id(name), _enforced(ledger.every(NamingScheme)))
    if misfit is None:
        return []
    return [FieldViolation("model_type_id", f"{misfit}; run: modelfleet registry name explain {_id(name)}")]


def renamed(ledger: Ledger, model_types: Iterable[str]) -> Edits:
    """Decides what schemes as they are now make of the ids of some model types: the edits of those that differ."""
    edits = []
    for name in model_types:
        model_type = ledger.model_type(name)
        if model_type is not None and model_type.naming != (words := naming(ledger, name)):
            edits.append(Edit(model_type, replace(model_type, naming=words)))
    return tuple(edits)


def _id(name: str) -> str:
    return name.removeprefix("modelTypes/")


def _enforced(schemes: Iterable[NamingScheme]) -> tuple[NamingScheme, ...]:
    return tuple(in_order([scheme for scheme in schemes if scheme.enforced]))


def _misfit(id_: str, schemes: Sequence[NamingScheme]) -> str | None:
    """Says by the scheme that an id comes closest to why it fits none; None where it fits one, or there is none."""
    if any(grammar(scheme).parse(id_) is not None for scheme in schemes):
        return None
    found = closest(id_, schemes)
    if found is None:
        return None
    scheme, explanation = found
    return f"does not fit {scheme.name}: {'; '.join(problems(explanation, scheme)[:3])}"


# --- schemes ----------------------------------------------------------------------------------------------------------


def check_scheme(scheme: NamingScheme) -> NamingScheme:
    """Returns the scheme, defaults written out, if its fields are right. Raises InvalidFields."""
    wrong = Violations("naming_scheme")
    wrong.text(scheme.description, "description", MAX_PROSE)
    separator = scheme.separator or DEFAULT_SEPARATOR
    wrong.expect(separator in ("_", "-"), "separator", "must be '_' (the default) or '-'")
    wrong.expect(1 <= len(scheme.fields) <= MAX_FIELDS, "fields", f"must have 1 to {MAX_FIELDS} entries")
    words = sum(len(field.words) for field in scheme.fields)
    too_many = f"must have at most {MAX_WORDS_IN_ALL:,} words in all, they have {words:,}; a pattern may stand for many"
    wrong.expect(words <= MAX_WORDS_IN_ALL, "fields", too_many)
    wrong.unique([field.id for field in scheme.fields], "fields", ".id")
    for index, field in enumerate(scheme.fields[:MAX_FIELDS]):
        _check_field(wrong, field, f"fields[{index}]", separator)
    wrong.raise_if_any()
    return replace(scheme, separator=separator)


def _check_field(wrong: Violations, field: NamingField, path: str, separator: str) -> None:
    wrong.expect(names.is_id(field.id), f"{path}.id", names.ID_EXPECTATION)
    wrong.text(field.description, f"{path}.description", MAX_TEXT)
    wrong.count(field.words, f"{path}.words", MAX_WORDS)
    wrong.unique([each.word for each in field.words], f"{path}.words", ".word")
    for index, each in enumerate(field.words[:MAX_WORDS]):
        where = f"{path}.words[{index}]"
        is_word = _WORD.fullmatch(each.word) is not None
        wrong.expect(is_word, f"{where}.word", "must have 1 to 63 characters of a-z, 0-9, '_' and '-'")
        is_inside = not each.word.startswith(separator) and not each.word.endswith(separator)
        wrong.expect(is_inside, f"{where}.word", f"must not begin or end with the separator, {separator!r}")
        wrong.text(each.meaning, f"{where}.meaning", MAX_TEXT)
    wrong.text(field.pattern, f"{path}.pattern", MAX_TEXT)
    if field.pattern and len(field.pattern) <= MAX_TEXT:
        problem = what_is_wrong_with(field.pattern)
        wrong.expect(problem is None, f"{path}.pattern", problem or "")


def create_scheme(ledger: Ledger, asked: NamingScheme, uid: str) -> Edits:
    """Decides CreateNamingScheme."""
    refuse_existing(ledger, asked.name)
    if len(ledger.every(NamingScheme)) >= MAX_SCHEMES:
        raise invalid("naming_scheme_id", f"there are {MAX_SCHEMES} schemes, the most; delete one first")
    return created(check_scheme(asked), uid)


def update_scheme(ledger: Ledger, asked: NamingScheme, mask: Sequence[str]) -> Edits:
    """Decides UpdateNamingScheme."""
    before = current(_scheme(ledger, asked.name), asked.name, asked.etag)
    return changed(before, check_scheme(merge(before, asked, mask, field="naming_scheme")))


def delete_scheme(ledger: Ledger, name: str, etag: str) -> Edits:
    """Decides DeleteNamingScheme. No id is refused for it: model types that fit no other scheme lose their words."""
    return deleted(current(_scheme(ledger, name), name, etag))


def _scheme(ledger: Ledger, name: str) -> NamingScheme | None:
    found = ledger.find(name)
    return found if isinstance(found, NamingScheme) else None


@dataclass(frozen=True, slots=True)
class Tightening:
    """What the change of a scheme asks of ids that nothing asked of them before.

    Ids that were let through already, when a scheme was forced, are not counted again.
    """

    before: tuple[NamingScheme, ...]
    after: tuple[NamingScheme, ...]

    @classmethod
    def of(cls, ledger: Ledger, edits: Edits) -> Tightening:
        """Makes it from the ledger before the change, and the edits of `create_scheme` or `update_scheme`."""
        before = {scheme.name: scheme for scheme in ledger.every(NamingScheme)}
        after = before | {edit.name: edit.after for edit in edits if isinstance(edit.after, NamingScheme)}
        return cls(_enforced(before.values()), _enforced(after.values()))

    @property
    def is_none(self) -> bool:
        """Whether it asks nothing new."""
        return not self.after or self.before == self.after

    def problem(self, model_type: str) -> str | None:
        """Says why a model type's id would not be valid any more; None where it would, or was not before."""
        misfit = _misfit(_id(model_type), self.after)
        if misfit is None or _misfit(_id(model_type), self.before) is not None:
            return None
        return misfit
