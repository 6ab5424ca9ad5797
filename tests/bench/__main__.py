"""Runs the benchmarks: python -m tests.bench [--only registry] [--output build/bench.json].

A benchmark is a module of this folder with `async def run() -> list[Figure]`, and with `NAMES` where it measures other
figures than the one that it is called after (`registry_point_get.py` measures `registry.point_get`). `--only detection`
runs the benchmark of that name, too.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import pkgutil
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from rich.console import Console

import tests.bench
from tests.bench.figures import Figure, table, write


def modules(only: str) -> list[ModuleType]:
    """Returns the benchmarks that measure a figure whose name begins so, or whose own name does."""
    names = [module.name for module in pkgutil.iter_modules(tests.bench.__path__, "tests.bench.")]
    loaded = [importlib.import_module(name) for name in sorted(names) if not name.endswith((".__main__", ".figures"))]
    return [module for module in loaded if any(name.startswith(only) for name in (_own(module), *figure_names(module)))]


def figure_names(module: ModuleType) -> Sequence[str]:
    """Returns the names of the figures that a benchmark measures."""
    names: Sequence[str] = getattr(module, "NAMES", (_own(module).replace("_", ".", 1),))
    return names


def _own(module: ModuleType) -> str:
    return module.__name__.rpartition(".")[2]


def main(argv: Sequence[str] | None = None) -> int:
    """Measures, prints a table, writes the file. The exit status is 1 where something could not be measured."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument(
        "--only", default="", metavar="PREFIX", help="only figures, or benchmarks, whose names begin so"
    )
    parser.add_argument("--output", type=Path, default=Path("build/bench.json"), metavar="FILE")
    options = parser.parse_args(argv)
    console = Console()
    chosen = modules(options.only)
    if not chosen:
        console.print(f"No figure begins with {options.only}.")
        return 1
    figures: list[Figure] = []
    failed = False
    for module in chosen:
        title = (module.__doc__ or module.__name__).splitlines()[0]
        console.print(f"[bold]{title}[/] …")
        try:
            measured = asyncio.run(module.run())
        except Exception:
            console.print_exception(show_locals=False)
            failed = True
            continue
        named = _own(module).startswith(options.only)
        figures += [figure for figure in measured if named or figure.name.startswith(options.only)]
    console.print(table(figures))
    for figure in figures:
        console.print(f"  {figure.name}: {figure.yardstick}", markup=False, highlight=False, soft_wrap=True)
    write(figures, options.output)
    console.print(f"Written to {options.output}.")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
