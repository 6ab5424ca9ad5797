"""What the READMEs point to is there, and what they tell people to type exists."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import click
import pytest

from modelfleet.cli import root

ROOT = Path(__file__).parents[2]
TRACKED = subprocess.run(
    ["git", "ls-files", "*README.md"], cwd=ROOT, capture_output=True, text=True, check=False
).stdout
READMES = [ROOT / line for line in TRACKED.splitlines()] or sorted(ROOT.glob("[!.]*/**/README.md"))
TARGETS = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def _commands(readme: Path) -> list[list[str]]:
    """The commands of the console blocks, without comments and prompts; where there are prompts, the rest is output."""
    blocks = re.findall(r"```(?:console|sh|bash)\n(.*?)```", readme.read_text(), re.DOTALL)
    commands = []
    for block in blocks:
        lines = block.replace("\\\n", " ").splitlines()
        prompted = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
        commands += [shlex.split(line, comments=True) for line in prompted or lines if line.strip()]
    return commands


@pytest.mark.parametrize("readme", READMES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(readme: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", readme.read_text()):
        if "://" not in target and not target.startswith("#"):
            assert (readme.parent / target.split("#")[0]).exists(), target


@pytest.mark.parametrize("readme", READMES, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_exist(readme: Path) -> None:
    for words in _commands(readme):
        if words[:1] == ["make"]:
            assert words[1] in TARGETS, words
        elif words and Path(words[0]).name == "modelfleet":
            command: click.Command = root
            for word in words[1:]:
                if not isinstance(command, click.Group) or word.startswith("-"):
                    break
                found = command.get_command(click.Context(command), word)
                assert found is not None, f"{' '.join(words)}: no command '{word}'"
                command = found
            options = {option for parameter in command.params for option in parameter.opts} | {"--help"}
            for word in words:
                if word.startswith("--"):
                    assert word.split("=")[0] in options, f"{' '.join(words)}: no option {word}"


def test_the_first_page_names_the_two_commands() -> None:
    assert _commands(ROOT / "README.md")[:2] == [["make", "demo"], ["make", "test"]]
