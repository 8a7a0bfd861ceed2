"""`pyvirtfs doctor`: what this machine offers to an export, and what is missing."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

import click

from pyvirtfs.errors import ConfigError

if TYPE_CHECKING:
    from pyvirtfs.cli.probes import Finding

_EPILOG = """\b
Examples:
  pyvirtfs doctor
  pyvirtfs doctor /srv/data
"""

_PIPE_COLUMNS = 140
"""Where the output is no terminal there is nothing to fit into, unless the variable COLUMNS says so."""


@click.command(epilog=_EPILOG)
@click.argument("path", required=False)
def doctor(path: str | None) -> int:
    """Show what this machine offers, tried for real, on the file system of PATH (default: the current folder).

    The exit status is 1 if something essential is missing, or if PATH was given and cannot be read, and 0 otherwise.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from pyvirtfs.cli import probes

    groups = {
        "kernel": probes.kernel(),
        "limits": probes.limits(),
        "process": probes.process(),
        "export": _export(path),
        "software": probes.software(),
    }
    console = Console(highlight=False)
    if not console.is_terminal and not os.environ.get("COLUMNS", "").isdecimal():
        console = Console(highlight=False, width=_PIPE_COLUMNS)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("what", no_wrap=True)
    table.add_column("state", no_wrap=True)
    table.add_column("found", overflow="fold")
    table.add_column("why it matters", overflow="fold")
    missing = []
    for group, findings in groups.items():
        table.add_row(Text(group, "bold"))
        for finding in findings:
            color = "green" if finding.present else "bold red" if finding.essential else "yellow"
            state = Text("ok" if finding.present else "missing", color)
            table.add_row(f" {finding.subject}", state, Text(finding.detail), Text(finding.reason, "dim"))
            if finding.essential and not finding.present:
                missing.append(finding.subject)
        table.add_section()
    console.print(table)
    console.print()
    if missing:
        console.print(f"Essential and missing: {', '.join(missing)}")
        return 1
    console.print("Nothing essential is missing.")
    return 0


def _export(path: str | None) -> list[Finding]:
    """What `probes.export` finds, and whether the folder can be read at all: it must be, if somebody asked for it."""
    from pyvirtfs.cli import probes
    from pyvirtfs.fsdev.local import open_root

    folder = os.curdir if path is None else path
    reason = "guests may list and read"
    try:
        with os.scandir(folder):
            found = probes.export(folder)
    except (FileNotFoundError, NotADirectoryError):
        os.close(open_root(folder))  # tells what is wrong in the words that an export of it would
        raise
    except OSError as error:
        found = [probes.Finding("file system", False, "unknown", f"of {folder}")]
        with contextlib.suppress(ConfigError):  # it is below a folder that cannot be searched
            found = probes.export(folder)
        detail = f"no: {error.strerror or error}"
        return [found[0], probes.Finding("readable", False, detail, reason, path is not None), *found[1:]]
    return [found[0], probes.Finding("readable", True, "yes", reason), *found[1:]]
