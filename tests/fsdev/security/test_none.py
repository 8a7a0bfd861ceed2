from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from pyvirtfs.fsdev.driver import NONUNAME
from pyvirtfs.fsdev.entries import Entry
from pyvirtfs.fsdev.security import NoModel

ACL = b"system.posix_acl_access"


def test_xattrs() -> None:
    model = NoModel()
    assert model.xattr_name(b"user.x") == model.xattr_visible(b"user.x") == b"user.x"
    assert model.xattr_visible(ACL) is None
    with pytest.raises(OSError, match="not supported"):
        model.xattr_name(ACL)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_chown(tmp_path: Path) -> None:
    entry = Entry(os.open(tmp_path, os.O_PATH), 1, 0o040000, 0)
    try:
        NoModel().chown(entry, 12, NONUNAME)
        NoModel().chown(entry, NONUNAME, 34)
        assert (tmp_path.stat().st_uid, tmp_path.stat().st_gid) == (12, 34)
    finally:
        os.close(entry.fd)


@pytest.mark.parametrize("code", [errno.EPERM, errno.EINVAL, errno.EROFS])
def test_refused_chown(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def refuse(*_args: object) -> None:
        raise OSError(code, "no")

    entry = Entry(3, 1, 0o100000, 0)
    monkeypatch.setattr("pyvirtfs.fsdev.security.model.fchownat", refuse)
    if code == errno.EROFS:
        with pytest.raises(OSError, match="no"):
            NoModel().chown(entry, 1, 1)
    else:
        NoModel().chown(entry, 1, 1)
