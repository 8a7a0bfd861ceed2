"""The text in which ``security_model=mapped-file`` keeps what differs from the host.

A line for each field that is known: ``virtfs.uid=``, ``virtfs.gid=``, ``virtfs.mode=``, ``virtfs.rdev=``, in this
order, each with a decimal number. QEMU's local driver writes and reads the same; it takes the numbers for those of 32
bits with a sign, so that a negative one stands for one from 2**31 on, and it is written so, too.
"""

from __future__ import annotations

import re
from typing import Final

from pyvirtfs.fsdev.security.mapped import NOTHING, Overrides

MAX_NBYTES: Final = 4096
"""Longer files are no metadata."""

_LINE: Final = re.compile(rb"virtfs\.(uid|gid|mode|rdev)=(-?[0-9]{1,20})")
_BITS: Final = {"uid": 32, "gid": 32, "mode": 32, "rdev": 64}
_SIGN: Final = 1 << 31
_LEAST: Final = -_SIGN


def parse(data: bytes) -> tuple[Overrides, str]:
    """What a metadata file says, and what is wrong with it (empty: nothing); never raises.

    A line that makes no sense is left out; of two for one field the last one counts.
    """
    if len(data) > MAX_NBYTES:
        return NOTHING, f"more than {MAX_NBYTES} bytes"
    problem = ""
    fields: dict[str, int] = {}
    for line in data.removesuffix(b"\n").split(b"\n") if data else ():
        found = _LINE.fullmatch(line)
        if found is None:
            problem = problem or f"the line {line[:40]!r}"
            continue
        field, number = found[1].decode(), int(found[2])
        if _LEAST <= number < 1 << _BITS[field]:
            fields[field] = number if number >= 0 else number + (1 << 32)
        else:
            problem = problem or f"the line {line[:40]!r}"
    return Overrides(**fields) if fields else NOTHING, problem


def dump(kept: Overrides) -> bytes:
    """The content of a metadata file."""
    fields = zip(Overrides._fields, kept, strict=True)
    return b"".join(_line(name, number) for name, number in fields if number is not None)


def _line(name: str, number: int) -> bytes:
    """One field; a number beyond 32 bits, which QEMU does not write, has no sign."""
    return b"virtfs.%s=%d\n" % (name.encode(), number - (1 << 32) if _SIGN <= number < 1 << 32 else number)
