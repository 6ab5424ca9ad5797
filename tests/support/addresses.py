"""Addresses of this machine for servers that a test starts."""

from __future__ import annotations

from modelfleetd.kit.ports import HOST, free_port


def free_address() -> str:
    """An address that nothing listens on."""
    return f"{HOST}:{free_port()}"
