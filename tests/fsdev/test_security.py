from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from pyvirtfs.fsdev.driver import NONUNAME
from pyvirtfs.fsdev.security import MODELS

ACL = b"system.posix_acl_access"


def test_the_names() -> None:
    assert set(MODELS) == {"passthrough", "none"}
    assert all(name == model.name for name, model in MODELS.items())


@pytest.mark.parametrize("model", list(MODELS.values()), ids=list(MODELS))
@pytest.mark.parametrize("name", [b"trusted.x", b"security.selinux", b"system.x", b"user", b"", b"user.\0x", b"\xff"])
def test_foreign_xattrs(model: object, name: bytes) -> None:
    strategy = MODELS[model.name]  # type: ignore[attr-defined]  # a SecurityModel
    with pytest.raises(OSError, match="not supported") as caught:
        strategy.xattr_name(name)
    assert caught.value.errno == errno.EOPNOTSUPP


@pytest.mark.parametrize("name", ["passthrough", "none"])
def test_xattrs(name: str) -> None:
    model = MODELS[name]
    assert model.xattr_name(b"user.x") == model.xattr_visible(b"user.x") == b"user.x"
    assert model.xattr_visible(b"trusted.x") is None
    if name == "passthrough":
        assert model.xattr_name(ACL) == model.xattr_visible(ACL) == ACL
    else:
        assert model.xattr_visible(ACL) is None
        with pytest.raises(OSError, match="not supported"):
            model.xattr_name(ACL)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_chown(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_PATH)
    try:
        for model in MODELS.values():
            model.chown(fd, 12, NONUNAME)
            model.chown(fd, NONUNAME, 34)
            assert (tmp_path.stat().st_uid, tmp_path.stat().st_gid) == (12, 34)
    finally:
        os.close(fd)


@pytest.mark.parametrize("code", [errno.EPERM, errno.EINVAL, errno.EROFS])
def test_refused_chown(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def refuse(*_args: object) -> None:
        raise OSError(code, "no")

    monkeypatch.setattr("pyvirtfs.fsdev.security.fchownat", refuse)
    with pytest.raises(OSError, match="no"):
        MODELS["passthrough"].chown(3, 1, 1)
    if code == errno.EROFS:
        with pytest.raises(OSError, match="no"):
            MODELS["none"].chown(3, 1, 1)
    else:
        MODELS["none"].chown(3, 1, 1)
