"""NannyML's synthetic car loans: predictions and labels that lie in separate files, and what is known of them.

Reference values: NannyML's own documentation of the dataset, recomputed in float64 in chunks of 5,000 rows.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pyarrow import csv as pacsv

CHUNK = 5_000
# Calibration of the reference's chunks: mean and standard deviation; and of the analysis' chunks 6 to 10.
REFERENCE_CALIBRATION = (0.9987, 0.0062)
FAULTY_CALIBRATIONS = (1.042, 1.026, 1.029, 1.030, 1.036)


@dataclass(frozen=True, slots=True, eq=False)
class Loans:
    """Loans in the order of their making: the predicted probability that one is repaid, and whether it was."""

    score: npt.NDArray[np.float64]
    label: npt.NDArray[np.int64]

    def chunks(self) -> list[Loans]:
        """Returns them by 5,000."""
        starts = range(0, len(self.score), CHUNK)
        return [Loans(self.score[start : start + CHUNK], self.label[start : start + CHUNK]) for start in starts]


@cache
def reference() -> Loans:
    """The period that was healthy."""
    table = _table("reference", "y_pred_proba", "repaid")
    return Loans(table["y_pred_proba"].to_numpy(), table["repaid"].to_numpy().astype(np.int64))


@cache
def analysis() -> Loans:
    """What came after; of its ten chunks the last five are miscalibrated."""
    predicted, targets = _table("analysis", "id", "y_pred_proba"), _table("analysis_target", "id", "repaid")
    assert (predicted["id"].to_numpy() == targets["id"].to_numpy()).all()
    return Loans(predicted["y_pred_proba"].to_numpy(), targets["repaid"].to_numpy().astype(np.int64))


def _table(part: str, *columns: str) -> Any:
    # Found, not imported: only its data is installed, not what its code needs.
    found = importlib.util.find_spec("nannyml")
    assert found is not None and found.submodule_search_locations, "nannyml is not installed: run `make test`"
    path = Path(found.submodule_search_locations[0]) / f"datasets/data/synthetic_car_loan_{part}.csv"
    return pacsv.read_csv(path, convert_options=pacsv.ConvertOptions(include_columns=list(columns)))
