"""What this process may do, by capabilities(7)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from pyvirtfs.syscalls import get_effective_capabilities

_NUMBERS: Final = {"CAP_CHOWN": 0, "CAP_DAC_OVERRIDE": 1, "CAP_DAC_READ_SEARCH": 2, "CAP_FOWNER": 3, "CAP_FSETID": 4}


def effective_capabilities() -> int:
    """The effective set of this thread, bit by bit. 0 if the kernel does not tell."""
    try:
        return get_effective_capabilities()
    except OSError:
        return 0


def missing_capabilities(names: Iterable[str]) -> list[str]:
    """Those of the named capabilities that this thread does not have."""
    effective = effective_capabilities()
    return [name for name in names if not effective >> _NUMBERS[name] & 1]
