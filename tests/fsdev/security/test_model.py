from __future__ import annotations

import errno
import stat

import pytest

from pyvirtfs.fsdev.security import MODELS
from pyvirtfs.fsdev.security.model import without_set_ids


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


@pytest.mark.parametrize(
    ("before", "after"),
    [(0o6755, 0o755), (0o4600, 0o600), (0o2750, 0o750), (0o2640, 0o2640), (0o1755, 0o1755), (0, 0)],
)
def test_set_ids(before: int, after: int) -> None:
    assert without_set_ids(stat.S_IFREG | before) == stat.S_IFREG | after
    assert without_set_ids(stat.S_IFDIR | before) == stat.S_IFDIR | before
