from __future__ import annotations

import io
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from pyvirtfs.cli.shell_commands import COMMANDS, Commands
from pyvirtfs.cli.shell_runner import CommandError, OutputError, number_of
from pyvirtfs.testing import pair

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def test_patterns(shell: Run, export: Path) -> None:
    for name in ("a.c", "b.c", "c.h", ".d.c"):
        (export / name).touch()
    (export / "sub").mkdir()
    (export / "sub" / "e.c").touch()
    answer = shell("ls *.c", "ls sub/*", "ls /*.h", "rm *.c", "ls -a", "rm *.none")
    assert answer.stdout.split() == ["a.c", "b.c", "sub/e.c", "/c.h", ".d.c", "c.h", "sub"]
    assert answer.stderr == "rm: *.none: No such file or directory\n"


def test_usage_tells_the_number_of_arguments() -> None:
    counts = {name: (known.fewest, known.most) for name, known in COMMANDS.items()}
    assert counts["ls"] == (0, None)
    assert counts["cat"] == (1, None)
    assert counts["chmod"] == (2, None)
    assert counts["put"] == (1, 2)
    assert counts["xattr"] == (1, 3)
    assert counts["pwd"] == (0, 0)


def test_usage_tells_which_arguments_may_be_left_out() -> None:
    counts = {name: (known.fewest, known.most) for name, known in COMMANDS.items()}
    assert counts["mknod"] == (2, 4)
    assert counts["chown"] == (2, None)
    assert counts["truncate"] == counts["touch"] == (1, None)
    assert counts["lock"] == (1, 3)
    assert counts["su"] == (0, 1)


def test_names_with_a_dash(shell: Run, export: Path) -> None:
    answer = shell("touch -- -l", "ls -- -l", "chmod -- 600 -l", "chmod -r -l", "rm -- -l", "rm -l")
    assert (answer.stdout, answer.stderr) == ("-l\n", "usage: rm [-r] [-f] PATH...\n")
    assert list(export.iterdir()) == []


@pytest.mark.parametrize("text", ["", "-1", "+1", "1_0", "0x1", " 1", "11", "\u0661", 5000 * "1"])
def test_what_is_no_number(text: str) -> None:
    assert number_of("10", 10) == 10
    with pytest.raises(CommandError, match="is not a number from 0 to 10"):
        number_of(text, 10)


def test_output_that_fails_is_no_failure_of_a_command(export: Path) -> None:
    def fail(_: str) -> None:
        raise BrokenPipeError

    with pair(f"local,path={export},security_model=none") as both:
        commands = Commands(both.mount, "", echo=fail, complain=fail, binary=io.BytesIO(), set_trace=lambda _: None)
        for words in (["pwd"], ["ls", "missing"], ["reboot"]):
            with pytest.raises(OutputError):
                commands.run(words)
