"""Folders in memory: PostgreSQL makes six hundred files a database, and a disk is slow at making and removing those."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

# What everything that runs at once may take together, in bytes.
_ROOM = 2 << 30


def memory() -> Path | None:
    """Returns where to make folders in memory; None where this machine has no such place, or too little room in it."""
    place = Path("/dev/shm")
    roomy = os.access(place, os.W_OK) and shutil.disk_usage(place).free >= _ROOM
    return place if roomy else None
