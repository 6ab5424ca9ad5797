"""Naming schemes: how ids of model types are made of words, taken apart and explained.

An id is cut at the separator into pieces. A listed word may be of several pieces; one that is not listed is one piece.
From left to right each field takes the longest listed word, else a piece that its pattern allows, else, where it is
optional, nothing: the first of these with which the rest fits too. So every id has at most one meaning, and finding it
looks at each pair of piece and field once.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from modelfleetd.registry.domain.identity import Same
from modelfleetd.registry.domain.patterns import expression
from modelfleetd.registry.domain.resource import Resource

DEFAULT_SEPARATOR: Final = "_"
MOST_ACCEPTED: Final = 10
# What an explanation costs: it is the one in which the least is wrong. A wrong word of several pieces is dearer than
# one of one piece, and cheaper than a wrong word and a piece too many.
_WRONG = 100
_WRONG_PIECE = 90


@dataclass(frozen=True, slots=True, kw_only=True)
class NamingWord:
    """A word that a field may be, and what it means."""

    word: str
    meaning: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class NamingField:
    """One field of a naming scheme."""

    id: str
    description: str = ""
    words: tuple[NamingWord, ...] = ()
    pattern: str = ""
    optional: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class NamingScheme(Resource):
    """How ids of model types are made of words."""

    description: str = ""
    separator: str = ""
    fields: tuple[NamingField, ...] = ()
    enforced: bool = False


@dataclass(frozen=True, slots=True)
class Part:
    """A word of an id: the field that it stands for, None where it is one too many, and whether it is right there."""

    word: str
    field: NamingField | None
    fits: bool


@dataclass(frozen=True, slots=True)
class Explanation:
    """An id word by word, as the scheme understands it with the least wrong."""

    parts: tuple[Part, ...]
    missing: tuple[NamingField, ...]
    cost: int

    @property
    def valid(self) -> bool:
        """Whether the id fits the scheme."""
        return self.cost == 0


class Grammar:
    """A scheme, ready to take ids apart. Its patterns have to be ones."""

    def __init__(self, scheme: NamingScheme) -> None:
        self.scheme = scheme
        self._separator = scheme.separator or DEFAULT_SEPARATOR
        self._words = [frozenset(each.word for each in field.words) for field in scheme.fields]
        # The most pieces that a listed word of each field has.
        self._longest = [
            max((each.word.count(self._separator) + 1 for each in field.words), default=1) for field in scheme.fields
        ]

    def parse(self, id_: str) -> dict[str, str] | None:
        """Returns the word of each field that the id has; None where it does not fit the scheme."""
        pieces = id_.split(self._separator)
        dead: set[tuple[int, int]] = set()

        def rest(at: int, number: int) -> list[Part] | None:
            """Returns the parts from a piece and a field on."""
            if number == len(self.scheme.fields):
                return [] if at == len(pieces) else None
            if (at, number) not in dead:
                for count in self._fitting(pieces, at, number):
                    after = rest(at + count, number + 1)
                    if after is not None:
                        word = self._separator.join(pieces[at : at + count])
                        return [Part(word, self.scheme.fields[number], True), *after] if count else after
                dead.add((at, number))
            return None

        parts = rest(0, 0)
        return None if parts is None else {part.field.id: part.word for part in parts if part.field is not None}

    def _fitting(self, pieces: Sequence[str], at: int, number: int) -> Iterator[int]:
        """Yields how many pieces from one on a field may take, as it prefers them."""
        for count in range(min(self._longest[number], len(pieces) - at), 0, -1):
            if self._separator.join(pieces[at : at + count]) in self._words[number]:
                yield count
        if at < len(pieces) and self._allows(pieces[at], number):
            yield 1
        if self.scheme.fields[number].optional:
            yield 0

    def _allows(self, piece: str, number: int) -> bool:
        """Says whether a field may be a piece that is not listed."""
        field = self.scheme.fields[number]
        if not piece or piece in self._words[number]:
            return False
        return expression(field.pattern).fullmatch(piece) is not None if field.pattern else not field.words

    def explain(self, id_: str) -> Explanation:
        """Returns the id word by word. Where it does not fit, that of all readings in which the least is wrong."""
        pieces = id_.split(self._separator)
        fields = self.scheme.fields

        @functools.cache
        def cheapest(at: int, number: int) -> tuple[int, int, bool | None]:
            """Returns the cost from a piece and a field on, and the first step: pieces taken, and whether they fit.

            None instead: they are too many, and fill no field.
            """
            if number == len(fields):
                return (_WRONG * (len(pieces) - at), 1, None)
            best: tuple[int, int, bool | None] | None = None
            for cost, count, fits in self._readings(pieces, at, number):
                total = cost + cheapest(at + count, number + (fits is not None))[0]
                if best is None or total < best[0]:
                    best = (total, count, fits)
            assert best is not None
            return best

        parts: list[Part] = []
        missing: list[NamingField] = []
        at = number = 0
        while at < len(pieces) or number < len(fields):
            _, count, fits = cheapest(at, number)
            word = self._separator.join(pieces[at : at + count])
            field = None if fits is None else fields[number]
            if count:
                parts.append(Part(word, field, fits is True))
            elif field is not None and not field.optional:
                missing.append(field)
            at, number = at + count, number + (fits is not None)
        return Explanation(tuple(parts), tuple(missing), cheapest(0, 0)[0])

    def _readings(self, pieces: Sequence[str], at: int, number: int) -> Iterator[tuple[int, int, bool | None]]:
        """Yields what a field may take, right or wrong: the cost, how many pieces, and whether they fit it."""
        left = len(pieces) - at
        for count in self._fitting(pieces, at, number):
            if count:
                yield 0, count, True
        for count in range(1, min(self._longest[number], left) + 1):
            yield _WRONG + _WRONG_PIECE * (count - 1), count, False
        yield (0 if self.scheme.fields[number].optional else _WRONG), 0, False
        if left:
            yield _WRONG, 1, None


def nearest(word: str, field: NamingField) -> list[str]:
    """Returns listed words of a field, the most similar first; at most 10."""
    similar = difflib.SequenceMatcher(b=word[:63])
    scored = []
    for each in field.words:
        similar.set_seq1(each.word)
        scored.append((-similar.quick_ratio(), each.word))
    return [each for _, each in sorted(scored)[:MOST_ACCEPTED]]


def meaning(word: str, field: NamingField) -> str:
    """Returns what a word of a field means; empty where the scheme does not say."""
    return next((each.meaning for each in field.words if each.word == word), "")


def accepted(field: NamingField) -> str:
    """Says what a field takes."""
    words = [each.word for each in field.words]
    shown = ", ".join(words[:MOST_ACCEPTED]) + (
        f" or {len(words) - MOST_ACCEPTED} more" if len(words) > MOST_ACCEPTED else ""
    )
    if field.pattern:
        return f"{shown}, or what matches {field.pattern}" if shown else f"what matches {field.pattern}"
    return shown or "any word"


def problem(part: Part, scheme: NamingScheme) -> str:
    """Says what is wrong with a word; empty where nothing is."""
    if part.field is None:
        return f"is one word too many: {scheme.name} has {len(scheme.fields)} fields"
    if part.fits:
        return ""
    near = difflib.get_close_matches(part.word[:63], [each.word for each in part.field.words], 1)
    guess = f"; did you mean {near[0]!r}?" if near else f"; accepted: {accepted(part.field)}"
    return f"is no {part.field.id}{guess}"


def problems(explanation: Explanation, scheme: NamingScheme) -> list[str]:
    """Says everything that is wrong with an id, in its order."""
    wrong = [f"{part.word!r} {problem(part, scheme)}" for part in explanation.parts if not part.fits]
    return [*wrong, *(f"{field.id} is missing; accepted: {accepted(field)}" for field in explanation.missing)]


@functools.lru_cache(maxsize=256)
def _grammar(scheme: Same[NamingScheme]) -> Grammar:
    return Grammar(scheme.value)


def grammar(scheme: NamingScheme) -> Grammar:
    """Returns the grammar of a scheme, made once as long as it does not change."""
    return _grammar(Same(scheme))


def in_order(schemes: Sequence[NamingScheme]) -> list[NamingScheme]:
    """Returns schemes in the order in which they are asked: those that are enforced first, then by name."""
    return sorted(schemes, key=lambda scheme: (not scheme.enforced, scheme.name))


def parsed(id_: str, schemes: Sequence[NamingScheme]) -> tuple[NamingScheme | None, Mapping[str, str]]:
    """Returns the first scheme that an id fits, and the word of each of its fields; nothing where it fits none."""
    for scheme in in_order(schemes):
        words = grammar(scheme).parse(id_)
        if words is not None:
            return scheme, words
    return None, {}


def closest(id_: str, schemes: Sequence[NamingScheme]) -> tuple[NamingScheme, Explanation] | None:
    """Returns the scheme that an id fits or comes closest to, with the explanation by it; None where there is none."""
    explained = [(grammar(scheme).explain(id_), scheme) for scheme in in_order(schemes)]
    if not explained:
        return None
    explanation, scheme = min(explained, key=lambda each: each[0].cost)
    return scheme, explanation
