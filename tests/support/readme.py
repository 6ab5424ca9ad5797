"""Examples of a README, as people type them, print what it shows.

Examples begin anew, with empty services and an empty folder, at each marker. A fenced block whose first line is
`# file: NAME` writes that file; in a `console` block, each line that begins with `$ ` is run, and what follows it is
what it prints, where … stands for any text.
"""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelfleet.cli import main

_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.DOTALL | re.MULTILINE)
_FILE = re.compile(r"# file: (\S+)\n(.*)", re.DOTALL)


def parts(readme: Path, marker: str) -> list[str]:
    """What stands after each marker; of a part that is still being written (README_PARTS), all of it."""
    text = Path(os.environ.get("README_PARTS", readme)).read_text()
    return [part for part in text.split(marker) if "$ modelfleet" in part] if marker in text else [text]


def steps(part: str) -> Iterator[tuple[str, str]]:
    """Files to write, as (`file NAME`, content), and commands to run, as (command, what it prints)."""
    for language, block in _BLOCK.findall(part):
        if named := _FILE.fullmatch(block):
            yield f"file {named[1]}", named[2]
        elif language == "console" and block.startswith("$ "):
            for chunk in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
                command, _, printed = chunk.replace("\\\n", " ").partition("\n")
                yield command, printed


def shows(shown: str, printed: str) -> bool:
    """Says whether the README shows what was printed; spaces at the ends of lines do not count."""
    pattern = ".*?".join(re.escape(piece) for piece in _stripped(shown).split("…"))
    return re.fullmatch(pattern, _stripped(printed), re.DOTALL) is not None


def _stripped(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.strip().splitlines())


def heading(part: str) -> str:
    found = re.search(r"^## (.*)$", part, re.MULTILINE)
    return found[1] if found else "examples"


async def run_examples(
    part: str, address: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Runs the examples of a part against the services at an address, in an empty folder."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("MODELFLEET_ADDRESS", address)
    run = 0
    for command, shown in steps(part):
        if command.startswith("file "):
            path = folder / command.removeprefix("file ")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(shown)
            continue
        printed = await asyncio.to_thread(_printed, command, capsys)
        assert shows(shown, printed), f"$ {command}\n{printed}"
        run += 1
    assert run


def _printed(command: str, capsys: pytest.CaptureFixture[str]) -> str:
    """What a command prints, on both of its outputs."""
    words = shlex.split(command, comments=True)
    if words[0] != "modelfleet" or {"|", ">", ";", "&&", "||"} & set(words):
        # `python` is the one that modelfleet is installed for.
        environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        done = subprocess.run(
            ["bash", "-c", command], capture_output=True, text=True, timeout=60, check=False, env=environment
        )
        return done.stdout + done.stderr
    capsys.readouterr()
    main(words[1:])
    captured = capsys.readouterr()
    return captured.out + captured.err
