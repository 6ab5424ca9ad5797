"""What a process says, kept in a file that cannot fill the disk."""

from __future__ import annotations

from pathlib import Path

_LIMIT = 8 << 20
_TAIL = 4096


class BoundedLog:
    """A file, and its predecessor once it has reached the limit: `registry.log`, `registry.log.1`."""

    def __init__(self, path: Path, limit: int = _LIMIT) -> None:
        self.path = path
        self._limit = limit
        self._file = path.open("ab", buffering=0)
        self._size = path.stat().st_size

    def write(self, data: bytes) -> None:
        """Appends, after moving a full file out of the way."""
        if self._size + len(data) > self._limit and self._size > 0:
            self._file.close()
            self.path.replace(self.path.with_name(f"{self.path.name}.1"))
            self._file = self.path.open("ab", buffering=0)
            self._size = 0
        self._file.write(data)
        self._size += len(data)

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def last_line(self) -> str:
        """Returns the last line that is not empty, to say why a process ended."""
        with self.path.open("rb") as file:
            file.seek(max(0, self.path.stat().st_size - _TAIL))
            lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
        return lines[-1] if lines else "it said nothing"
