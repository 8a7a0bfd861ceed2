"""Where the command `pyvirtfs` begins: outside of the package, of which the first import takes a third of a second.

Until then nobody could take a KeyboardInterrupt, so Ctrl-C does what it does to any program that does not care.
"""

from __future__ import annotations

import signal

INTERRUPTED = 130


def main() -> int:
    """Run the command line; see `pyvirtfs.cli.main`."""
    before = signal.getsignal(signal.SIGINT)
    is_python = before is signal.default_int_handler  # else it is ignored, as by nohup(1)
    if is_python:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from pyvirtfs.cli.main import main as run  # noqa: PLC0415  # this is what takes long

    try:
        if is_python:
            signal.signal(signal.SIGINT, before)
        return run()
    except KeyboardInterrupt:  # before it came to look after that itself
        return INTERRUPTED
