"""Keeps the logs of replicas from filling the disk."""

from __future__ import annotations

from pathlib import Path

_LARGEST = 8 << 20
_KEPT_TAIL = 1 << 20
_MOST_FILES = 200


def bound_logs(folder: Path, in_use: frozenset[str], *others: Path) -> None:
    """Cuts logs that have grown too large, keeping their end beside them, and removes the oldest of too many.

    Their writers append, so a file that is cut under them goes on from its new end.

    Args:
        folder: of the logs.
        in_use: names of files that somebody writes to.
        others: further logs.
    """
    logs = [(path, path.stat()) for path in folder.iterdir()]
    for path, stat in [*logs, *((path, path.stat()) for path in others if path.exists())]:
        if stat.st_size > _LARGEST:
            with path.open("r+b") as log:
                log.seek(-_KEPT_TAIL, 2)
                path.with_name(f"{path.name}.1").write_bytes(log.read())
                log.truncate(0)
    logs.sort(key=lambda found: found[1].st_mtime, reverse=True)
    for path, _ in logs[_MOST_FILES:]:
        if path.name not in in_use:
            path.unlink(missing_ok=True)
