"""What a shell is offered on Tab, through the program as the shell calls it."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from modelfleet.cli import main
from tests.support.launcher import launcher_fleet

_PROGRAM = Path(sys.executable).with_name("modelfleet")


async def _offered(line: str, **environment: str) -> list[str]:
    """What bash is offered at the end of a line."""
    words = line.split(" ")
    asked = {"_MODELFLEET_COMPLETE": "bash_complete", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    process = await asyncio.create_subprocess_exec(
        str(_PROGRAM), env=os.environ | asked | environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    out, err = await process.communicate()
    assert not err, err.decode()
    return [found.partition(",")[2] for found in out.decode().split("\n") if found]


async def test_commands_options_launches_and_models_are_completed(database_url: str) -> None:
    # One service answers for launches, one for models; a whole fleet has one door for both.
    async with launcher_fleet(database_url, old=10, new=10, launcher=True) as fleet:
        await fleet.create("first", bake=60)
        launcher, registry = ({"MODELFLEET_ADDRESS": one.address} for one in (fleet.launcher, fleet.registry))
        found = await asyncio.gather(
            _offered("modelfleet lau"),
            _offered("modelfleet launch des"),
            _offered("modelfleet launch describe fi", **launcher),
            _offered(f"modelfleet launch pause --address {fleet.launcher.address} "),
            _offered("modelfleet launch plan c", **registry),
            _offered("modelfleet launch create ctr/n", **registry),
            _offered("modelfleet launch stats --by ", **launcher),
            _offered("modelfleet launch describe fi", MODELFLEET_ADDRESS="127.0.0.1:1"),
            _offered("modelfleet nonsense x"),
        )
    assert found == [
        ["launch"],
        ["describe"],
        ["first"],
        ["first"],
        ["ctr/new", "ctr/old"],
        ["ctr/new"],
        ["team", "surface", "strategy", "week"],
        [],
        [],
    ]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_gets_its_script(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert f"_MODELFLEET_COMPLETE={shell}_complete" in script and "modelfleet" in script
    if shell == "bash":
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)


# What each shell does on Tab behind `$LINE`, as far as that goes without a terminal: it loads what the command prints,
# and calls what that has registered.
_TAB = {
    "bash": """
eval "$(modelfleet completion bash)"
read -r -a COMP_WORDS <<< "$LINE"
COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
$(complete -p modelfleet | sed 's/.*-F \\([^ ]*\\).*/\\1/') modelfleet
printf '%s\\n' "${COMPREPLY[@]}"
""",
    # The widgets that show what is offered need a terminal: here they print it.
    "zsh": """
autoload -Uz compinit && compinit -u -d $HOME/.zcompdump
compadd() { print -l -- ${(P)${@[-1]}} }
_describe() { print -l -- ${${(P)3}%%:*} }
eval "$(modelfleet completion zsh)"
words=(${(z)LINE}); CURRENT=${#words}
${_comps[modelfleet]}
""",
    "fish": """
modelfleet completion fish | source
complete --do-complete "$LINE" | string replace --regex '\\t.*' ''
""",
}


@pytest.mark.parametrize("shell", list(_TAB))
async def test_the_real_shell_completes_verbs_and_the_names_of_launches(
    shell: str, database_url: str, tmp_path: Path
) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    async with launcher_fleet(database_url, old=10, new=10, launcher=True) as fleet:
        await fleet.create("first", bake=60)

        async def offered(line: str) -> list[str]:
            path = f"{_PROGRAM.parent}{os.pathsep}{os.environ['PATH']}"
            given = {"LINE": line, "HOME": str(tmp_path), "PATH": path, "MODELFLEET_ADDRESS": fleet.launcher.address}
            process = await asyncio.create_subprocess_exec(
                shell, "-c", _TAB[shell], env=os.environ | given, stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )
            out, err = await process.communicate()
            assert not err, err.decode()
            return out.decode().split()

        assert await offered("modelfleet launch ab") == ["abort"]
        assert set(await offered("modelfleet launch re")) == {"reject", "resume", "retry"}
        assert await offered("modelfleet launch describe fi") == ["first"]
