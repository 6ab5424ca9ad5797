"""Names, shares and spans of time as people say them."""

from __future__ import annotations


def short(name: str) -> str:
    """Returns the last id of a resource name: `teams/ranking` → `ranking`."""
    return name.rsplit("/", 1)[-1]


def short_model(name: str) -> str:
    """Returns a model's name as commands take it: `modelTypes/feed/models/v7` → `feed/v7`."""
    return name.removeprefix("modelTypes/").replace("/models/", "/")


def count(number: int, what: str) -> str:
    """Returns a number of things: `1 model type`, `3 model types`."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def size(number: float) -> str:
    """Returns a number of bytes as people say it: `812 B`, `1.2 KiB`, `35.4 MiB`, `1 GiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1000:
            return f"{number:.4g} {unit}" if unit == "B" else f"{number:.1f}".removesuffix(".0") + f" {unit}"
        number /= 1024
    return f"{number:,.1f}".removesuffix(".0") + " TiB"


def percent(basis_points: int) -> str:
    """Returns basis points as people say them: 2,050 → `20.5%`."""
    whole, rest = divmod(basis_points, 100)
    return f"{whole}%" if not rest else f"{basis_points / 100:g}%"


def seconds(value: float) -> str:
    """Returns a span of time as people say it: 0.4s, 7s, 12s, 3m 12s, 2h 5m, 3d 4h."""
    if value < 10:
        return f"{max(value, 0):.1f}".removesuffix(".0") + "s"
    whole = round(value)
    for unit, size, smaller, smaller_size in (("d", 86400, "h", 3600), ("h", 3600, "m", 60), ("m", 60, "s", 1)):
        if whole >= size:
            rest = whole % size // smaller_size
            return f"{whole // size}{unit} {rest}{smaller}" if rest else f"{whole // size}{unit}"
    return f"{whole}s"
