"""Free ports of this machine, for servers that somebody else is told of before they listen.

They come from below the range that the system draws from for outgoing connections (32768 and up on Linux, 49152 and up
elsewhere): a port from there that is free now may be some client's a moment later.
"""

from __future__ import annotations

import contextlib
import random
import socket
from collections.abc import Callable, Collection
from typing import Final

HOST: Final = "127.0.0.1"
SERVERS: Final = range(12_000, 20_000)
REPLICAS: Final = range(20_000, 32_001)
_TRIES: Final = 1_000


def reserve_port(
    among: range, *, taken: Collection[int] = (), draw: Callable[[int, int], int] = random.randint
) -> tuple[int, socket.socket]:
    """Chooses a free port, and a socket that keeps it for as long as anybody holds the socket.

    The socket is a UDP one on the same number: nobody on this machine who chooses a port in this way gets it while
    it is held, and the system takes the mark back when its holders end. (Servers that set SO_REUSEPORT, as gRPC's do,
    would otherwise share a port without noticing.)

    Args:
        among: the ports that may be chosen, one after another.
        taken: those that may not.
        draw: gives a whole number between two, both included.

    Raises:
        OSError: none of those that were tried is free.
    """
    for _ in range(_TRIES):
        port = draw(among[0], among[-1])
        if port not in taken and (mark := mark_port(port)) is not None:
            return port, mark
    raise OSError(f"no free port from {among[0]} to {among[-1]}")


def mark_port(port: int) -> socket.socket | None:
    """Marks one port as `reserve_port` does; None where it is not free."""
    mark = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with contextlib.suppress(OSError, OverflowError):
        mark.bind((HOST, port))
        if is_free(port):
            return mark
    mark.close()
    return None


def is_free(port: int) -> bool:
    """Says whether a server can listen on a port of this machine."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
        return True


def free_port() -> int:
    """Returns a port for a server that is free now.

    Raises:
        OSError: none is.
    """
    port, mark = reserve_port(SERVERS)
    mark.close()
    return port
