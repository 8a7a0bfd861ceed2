from __future__ import annotations

import errno

import pytest

from pyvirtfs.fsdev.security import MODELS


def test_the_names() -> None:
    assert all(MODELS[name].name == name for name in ("passthrough", "none"))


@pytest.mark.parametrize("model", list(MODELS))
@pytest.mark.parametrize("name", [b"trusted.x", b"security.selinux", b"system.x", b"user", b"", b"user.\0x", b"\xff"])
def test_foreign_xattrs(model: str, name: bytes) -> None:
    strategy = MODELS[model]()
    with pytest.raises(OSError, match="not supported") as caught:
        strategy.xattr_name(name)
    assert caught.value.errno == errno.EOPNOTSUPP
    assert strategy.xattr_visible(name) is None or b"\0" in name
