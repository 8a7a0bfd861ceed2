"""`pyvirtfs doctor`: what this machine offers to an export, and what is missing."""

from __future__ import annotations

import click

_EPILOG = """\b
Examples:
  pyvirtfs doctor
  pyvirtfs doctor /srv/data
"""

_PIPE_COLUMNS = 140
"""Where the output is no terminal, there is nothing to fit into."""


@click.command(epilog=_EPILOG)
@click.argument("path", default=".")
def doctor(path: str) -> int:
    """Show what this machine offers, tried for real, on the file system of PATH (default: the current folder).

    The exit status is 1 if something essential is missing, and 0 otherwise.
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
        "export": probes.export(path),
        "software": probes.software(),
    }
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=_PIPE_COLUMNS)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
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
    if missing:
        console.print(f"Essential and missing: {', '.join(missing)}")
        return 1
    console.print("Nothing essential is missing.")
    return 0
