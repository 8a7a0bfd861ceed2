from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from pyvirtfs.fsdev.driver import NONUNAME
from pyvirtfs.fsdev.entries import Entry
from pyvirtfs.fsdev.security import Passthrough

ACL = b"system.posix_acl_access"


def test_xattrs() -> None:
    model = Passthrough()
    assert model.xattr_name(b"user.x") == model.xattr_visible(b"user.x") == b"user.x"
    assert model.xattr_visible(b"trusted.x") is None
    assert model.xattr_name(ACL) == model.xattr_visible(ACL) == ACL


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_chown(tmp_path: Path) -> None:
    entry = Entry(os.open(tmp_path, os.O_PATH), 1, 0o040000, 0)
    try:
        Passthrough().chown(entry, 12, NONUNAME)
        Passthrough().chown(entry, NONUNAME, 34)
        assert (tmp_path.stat().st_uid, tmp_path.stat().st_gid) == (12, 34)
    finally:
        os.close(entry.fd)


@pytest.mark.parametrize("code", [errno.EPERM, errno.EINVAL, errno.EROFS])
def test_refused_chown(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def refuse(*_args: object) -> None:
        raise OSError(code, "no")

    monkeypatch.setattr("pyvirtfs.fsdev.security.model.fchownat", refuse)
    with pytest.raises(OSError, match="no"):
        Passthrough().chown(Entry(3, 1, 0o100000, 0), 1, 1)
