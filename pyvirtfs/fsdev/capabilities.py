"""What this process may do, by capabilities(7)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final

_NUMBERS: Final = {"CAP_CHOWN": 0, "CAP_DAC_OVERRIDE": 1, "CAP_FOWNER": 3, "CAP_FSETID": 4}


def effective_capabilities() -> int:
    """The effective set of this thread, bit by bit; proc_pid_status(5). 0 if the kernel does not tell."""
    try:
        status = Path("/proc/thread-self/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return 0
    for line in status.splitlines():
        key, _, value = line.partition(":")
        if key == "CapEff":
            return int(value, 16)
    return 0


def missing_capabilities(names: Iterable[str]) -> list[str]:
    """Those of the named capabilities that this thread does not have."""
    effective = effective_capabilities()
    return [name for name in names if not effective >> _NUMBERS[name] & 1]
