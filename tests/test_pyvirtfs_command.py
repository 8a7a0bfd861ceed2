"""Ctrl-C while the command `pyvirtfs` is still being loaded."""

from __future__ import annotations

import configparser
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import pyvirtfs_command

ROOT = Path(__file__).parents[1]

# What the script does that pip makes; and somebody presses Ctrl-C at the moment when a module is looked for.
SCRIPT = """
import os, signal, sys
from pyvirtfs_command import main

class Finder:
    def find_spec(name, path=None, target=None):
        if name == MODULE:
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Finder)
sys.argv[0] = "pyvirtfs"
sys.exit(main())
"""

EARLY = ["pyvirtfs", "pyvirtfs.errors", "numpy", "numpy.linalg", "pyvirtfs.virtio9p", "click", "pyvirtfs.cli.main"]
LATE = ["pyvirtfs.cli.lspci", "pyvirtfs.fsdev.local"]


def run(module: str, *arguments: str, ignored: bool = False) -> subprocess.CompletedProcess[str]:
    script = SCRIPT.replace("MODULE", repr(module))
    return subprocess.run(
        [sys.executable, "-c", script, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN if ignored else signal.default_int_handler),
    )


@pytest.mark.parametrize("module", EARLY)
def test_ctrl_c_while_the_package_is_loaded(module: str) -> None:
    done = run(module, "lspci")
    assert (done.stdout, done.stderr, done.returncode) == ("", "", -signal.SIGINT)


@pytest.mark.parametrize("module", LATE)
def test_ctrl_c_while_a_command_is_loaded(module: str) -> None:
    done = run(module, "lspci")
    assert (done.stdout, done.stderr.strip(), done.returncode) == ("", "", 130)


@pytest.mark.parametrize("module", ["no_such_module", *EARLY[:1], *LATE])
def test_it_is_ignored_where_it_was(module: str) -> None:
    done = run(module, "--version", ignored=True)
    assert (done.stderr, done.returncode) == ("", 0)
    assert done.stdout.startswith("pyvirtfs ")


def test_status_and_arguments_are_those_of_the_command() -> None:
    done = run("no_such_module", "mount")
    assert done.returncode == 2
    assert done.stderr.startswith("pyvirtfs: mount: there is no such command")


@pytest.mark.parametrize("milliseconds", [50, 100, 150, 200, 300, 400])
def test_ctrl_c_at_some_moment(milliseconds: int) -> None:
    """Wherever it is by then."""
    begun = "import pyvirtfs_command, sys; print(flush=True); sys.exit(pyvirtfs_command.main())"
    with subprocess.Popen(
        [sys.executable, "-c", begun, "shell", "-virtfs", "memory,mount_tag=t"],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == "\n"
        time.sleep(milliseconds / 1000)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert "Traceback" not in errors
    assert process.returncode in {-signal.SIGINT, 130, 0}  # 0: the shell was there, and its input ended


def test_it_is_what_pip_makes_a_script_of() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert setup["options.entry_points"]["console_scripts"].split() == ["pyvirtfs", "=", "pyvirtfs_command:main"]
    assert setup["options"]["py_modules"] == pyvirtfs_command.__name__
