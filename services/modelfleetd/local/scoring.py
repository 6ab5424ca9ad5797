"""A click model: logistic regression over categories. numpy only, because every replica imports it.

A feature is one column or a cross of several; the weight of a category is found by its name, such as
`campaign=men&item=14`. Categories that training never saw weigh nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

# What a request carries, one value an impression: the columns that a feature can be made of.
COLUMNS = ("campaign", "item", "position", "user_0", "user_1", "user_2", "user_3", "hour", "close")

Columns = Mapping[str, Sequence[object] | npt.NDArray[np.generic]]


@dataclass(frozen=True, slots=True, eq=False)
class ClickModel:
    """Weights by the names of categories."""

    features: tuple[tuple[str, ...], ...]
    bias: float
    weights: Mapping[str, float]

    def score(self, columns: Columns) -> npt.NDArray[np.float64]:
        """Returns the probability of a click, impression by impression."""
        logits = [self.bias + sum(self._weights_of(row)) for row in rows_of(columns)]
        return 1.0 / (1.0 + np.exp(-np.array(logits, dtype=np.float64)))

    def _weights_of(self, row: Mapping[str, object]) -> list[float]:
        return [self.weights.get(category(feature, row), 0.0) for feature in self.features]

    def save(self, path: Path) -> None:
        """Writes the model as .npz."""
        np.savez(
            path,
            features=np.array(["&".join(feature) for feature in self.features]),
            bias=np.float64(self.bias),
            names=np.array(list(self.weights)),
            weights=np.array(list(self.weights.values()), dtype=np.float64),
        )

    @classmethod
    def load(cls, path: Path) -> ClickModel:
        """Reads what `save` wrote."""
        with np.load(path, allow_pickle=False) as stored:
            return cls(
                features=tuple(tuple(str(name).split("&")) for name in stored["features"]),
                bias=float(stored["bias"]),
                weights=dict(zip(map(str, stored["names"]), map(float, stored["weights"]), strict=True)),
            )


def rows_of(columns: Columns) -> list[dict[str, object]]:
    """Turns columns into rows."""
    names = list(columns)
    return [dict(zip(names, values, strict=True)) for values in zip(*(columns[name] for name in names), strict=True)]


def category(feature: tuple[str, ...], row: Mapping[str, object]) -> str:
    """Returns the name of the category that a row falls into."""
    return "&".join(f"{column}={row[column]}" for column in feature)
