"""The demo's input: the sample of the Open Bandit Dataset (ZOZO, Apache-2.0) inside the wheel `obp`.

Six logs of 10,000 impressions each: three campaigns of a fashion shop, each under two ways of choosing what is shown.
An impression says when which item was shown in which of three positions, four coarse features of the user, how close
user and item are, and whether the user clicked. The files are read where they lie; the package is never imported.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, fields
from datetime import datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt

from modelfleetd.local.refusals import CannotRun

CAMPAIGNS = ("all", "men", "women")
POLICIES = ("random", "bts")
PER_LOG = 10_000

# Columns of a log: index, timestamp, item, position, click, propensity, four user features, then one affinity per item.
_USER, _AFFINITY = 6, 10
_DAY = 86_400.0
# The shop's hours, not Greenwich's.
_TOKYO = 9 * 3_600.0


@dataclass(frozen=True, slots=True, eq=False)
class Impressions:
    """Impressions in the order of their times, column by column; every column has one value an impression."""

    time: npt.NDArray[np.float64]
    """Seconds since 1970-01-01 UTC."""
    campaign: npt.NDArray[np.str_]
    item: npt.NDArray[np.int64]
    position: npt.NDArray[np.int64]
    """1 to 3."""
    user_0: npt.NDArray[np.str_]
    user_1: npt.NDArray[np.str_]
    user_2: npt.NDArray[np.str_]
    user_3: npt.NDArray[np.str_]
    affinity: npt.NDArray[np.float64]
    """Of this user and this item, from their history; 0 where there is none."""
    click: npt.NDArray[np.int64]
    """0 or 1."""

    def __len__(self) -> int:
        return len(self.time)

    def __getitem__(self, rows: slice | npt.NDArray[np.bool_] | npt.NDArray[np.int64]) -> Impressions:
        return Impressions(*(getattr(self, field.name)[rows] for field in fields(self)))

    @property
    def hour(self) -> npt.NDArray[np.int64]:
        """Hour of the day in Tokyo, 0 to 23."""
        return ((self.time + _TOKYO) // 3_600 % 24).astype(np.int64)

    @property
    def clicks(self) -> int:
        """How many were clicked."""
        return int(self.click.sum())

    def split(self, days: int) -> tuple[Impressions, Impressions]:
        """Cuts after so many days (UTC) of the log: what came before, and what came after."""
        end = int(np.searchsorted(self.time, (self.time[0] // _DAY + days) * _DAY))
        return self[:end], self[end:]


def dataset_folder() -> Path:
    """Returns where the logs lie.

    Raises:
        CannotRun: the wheel is not installed.
    """
    found = importlib.util.find_spec("obp")
    for place in (found.submodule_search_locations if found else None) or ():
        folder = Path(place) / "dataset" / "obd"
        if folder.is_dir():
            return folder
    raise CannotRun("The demo's dataset is not installed: run `make demo`, or `pip install --no-deps obp==0.4.1`.")


def read_logs(folder: Path | None = None) -> Impressions:
    """Reads all six logs and merges them by time.

    Raises:
        CannotRun: a log is not there.
    """
    root = folder or dataset_folder()
    rows = [row for policy in POLICIES for campaign in CAMPAIGNS for row in _read(root / policy / campaign, campaign)]
    rows.sort(key=lambda row: row[0])
    columns = list(zip(*rows, strict=True))
    types: tuple[type[np.generic], ...] = (
        np.float64, np.str_, np.int64, np.int64, np.str_, np.str_, np.str_, np.str_, np.float64, np.int64,
    )  # fmt: skip
    return Impressions(*(np.array(column, dtype=kind) for column, kind in zip(columns, types, strict=True)))


def _read(folder: Path, campaign: str) -> list[tuple[float, str, int, int, str, str, str, str, float, int]]:
    path = folder / f"{campaign}.csv"
    if not path.is_file():
        raise CannotRun(f"The demo's dataset is not complete: {path} is not there; install obp 0.4.1 anew.")
    rows = []
    with path.open(encoding="utf-8") as lines:
        next(lines)
        for line in lines:
            cells = line.rstrip("\n").split(",")
            item = int(cells[2])
            user = [cell[:8] for cell in cells[_USER:_AFFINITY]]  # hashes: eight digits tell them apart
            rows.append(
                (
                    datetime.fromisoformat(cells[1]).timestamp(),
                    campaign,
                    item,
                    int(cells[3]),
                    user[0],
                    user[1],
                    user[2],
                    user[3],
                    float(cells[_AFFINITY + item]),
                    int(cells[4]),
                )
            )
    return rows
