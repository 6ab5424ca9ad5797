"""Whether a database's URL can be read, said without showing any of it: a password may be anywhere in it."""

from __future__ import annotations

from urllib.parse import urlsplit

EXPECTATION = (
    "--database-url (or MODELFLEET_DATABASE_URL) must be postgresql://user:password@host:port/database; "
    "percent-encode what is special in the user or the password: # as %23, / as %2F, ? as %3F, @ as %40, : as %3A"
)


def check_database_url(url: str) -> None:
    """Raises ValueError, with nothing of the URL in it, where it cannot be read as it is meant.

    A password that was not encoded ends what stands before the database's name: its end is then a port, a path, a query
    or a fragment, which the driver would quote in its errors, or connect to.
    """
    if not _is_readable(url):
        raise ValueError(EXPECTATION) from None


def _is_readable(url: str) -> bool:
    if not url.isprintable() or " " in url:
        return False
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    place = parts.netloc
    credentials, at, hosts = place.rpartition("@")
    return (
        parts.scheme in {"postgresql", "postgres"}
        and not parts.fragment
        and "#" not in url
        and "@" not in credentials
        and "@" not in parts.path
        and "/" not in parts.path[1:]
        and (bool(at) or "@" not in parts.query)
        and all(map(_is_host, hosts.split(",")))
    )


def _is_host(host: str) -> bool:
    """Says whether it is empty, `name`, `name:port`, `[v6]` or `[v6]:port`."""
    name, colon, port = host.rpartition(":") if not host.endswith("]") else (host, "", "")
    if not colon:
        name, port = host, ""
    if colon and not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        return False
    if name.startswith("["):
        return name.endswith("]")
    return ":" not in name and "[" not in name
