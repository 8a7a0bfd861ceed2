from __future__ import annotations

import errno
import struct
from pathlib import Path
from typing import Any

import pytest

from pyvirtfs.syscalls import get_effective_capabilities, privilege
from pyvirtfs.syscalls._linux import ffi


def test_as_proc_tells() -> None:
    lines = Path("/proc/thread-self/status").read_text(encoding="ascii").splitlines()
    (told,) = [int(line.split(":")[1], 16) for line in lines if line.startswith("CapEff:")]
    assert get_effective_capabilities() == told


def test_both_halves(monkeypatch: pytest.MonkeyPatch) -> None:
    def fill(_header: Any, sets: Any) -> int:
        ffi.buffer(sets)[:] = struct.pack("=6I", 1 << 31 | 2, 0, 0, 1 << 8, 0, 0)
        return 0

    monkeypatch.setattr(privilege, "_capget", fill)
    assert get_effective_capabilities() == 1 << 40 | 1 << 31 | 2


def test_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = ffi.new("char[]", struct.pack("=Ii", privilege._VERSION_3, -1))
    monkeypatch.setattr(privilege, "_HEADER", wrong)
    with pytest.raises(OSError, match="Invalid argument") as caught:
        get_effective_capabilities()
    assert caught.value.errno == errno.EINVAL
