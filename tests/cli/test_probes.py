from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from pyvirtfs.cli import probes


def by_subject(findings: list[probes.Finding]) -> dict[str, probes.Finding]:
    return {finding.subject: finding for finding in findings}


def test_everything_essential_is_here() -> None:
    findings = [*probes.kernel(), *probes.limits(), *probes.process(), *probes.software()]
    assert [finding for finding in findings if finding.essential and not finding.present] == []
    assert all(finding.detail and finding.reason for finding in findings)


def test_probing_leaks_no_descriptor(tmp_path: Path) -> None:
    probes.kernel()
    before = len(os.listdir("/proc/self/fd"))
    probes.kernel()
    probes.export(str(tmp_path))
    assert len(os.listdir("/proc/self/fd")) == before


def test_xattrs_are_tried(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    try:
        os.setxattr(file, "user.test", b"1")
    except OSError:
        expected = False
    else:
        expected = True
    found = by_subject(probes.export(str(tmp_path)))
    assert found["user.* xattrs"].present is expected
    assert found["writable"].present
    assert list(tmp_path.iterdir()) == [file]


def test_a_file_system_without_them() -> None:
    found = by_subject(probes.export("/proc"))
    assert not found["writable"].present
    assert found["file system"].detail.startswith("proc mounted at /proc")


def test_a_call_that_fails_is_a_finding() -> None:
    def fail() -> str:
        raise OSError(38, "Function not implemented")

    found = probes.attempt("openat2", "why", fail, essential=True)
    assert found == ("openat2", False, "Function not implemented", "why", True)


@pytest.mark.parametrize(("version", "present"), [("8.2.2", False), ("10.1.0", True), ("11.0", True)])
def test_qemu_must_be_new_enough(version: str, present: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "qemu-system-x86_64"
    program.write_text(f"#!/bin/sh\necho QEMU emulator version {version}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    found = by_subject(probes.software())["QEMU"]
    assert found.present is present
    assert version in found.detail


def test_a_machine_without_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    found = by_subject(probes.software())
    assert not found["C compiler"].present
    assert not found["QEMU"].present
    assert found["Python"].detail == sys.version.split()[0]


UNUSED = {"C compiler", "trusted.* xattrs", "CAP_SYS_ADMIN"}


def test_what_is_not_used_yet_says_so(tmp_path: Path) -> None:
    findings = [*probes.kernel(), *probes.process(), *probes.export(str(tmp_path)), *probes.software()]
    assert {finding.subject for finding in findings if finding.reason.startswith("not used yet")} == UNUSED
    assert not any(finding.essential for finding in findings if finding.subject in UNUSED)
    assert not any("mapped" in finding.reason or "fast path" in finding.reason for finding in findings)
