from __future__ import annotations

import errno
import os

import pytest

from pyvirtfs.fsdev import capabilities


def test_of_this_process() -> None:
    effective = capabilities.effective_capabilities()
    if os.geteuid() != 0:
        assert not effective & 1
    assert set(capabilities.missing_capabilities(["CAP_CHOWN"])) == (set() if effective & 1 else {"CAP_CHOWN"})


def test_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capabilities, "effective_capabilities", lambda: 0b1001)
    assert capabilities.missing_capabilities(["CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID"]) == [
        "CAP_DAC_OVERRIDE", "CAP_FSETID",
    ]  # fmt: skip


def test_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> int:
        raise OSError(errno.EPERM, "refused")

    monkeypatch.setattr(capabilities, "get_effective_capabilities", refuse)
    assert capabilities.effective_capabilities() == 0
