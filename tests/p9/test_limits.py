from __future__ import annotations

import pytest

from pyvirtfs.errors import ConfigError
from pyvirtfs.p9.limits import MSIZE_LIMIT, Limits


def test_the_defaults_are_generous() -> None:
    limits = Limits()
    assert limits.fids >= 100_000
    assert limits.xattr_bytes >= 65536 * 100
    assert limits.locks >= 10_000
    assert MSIZE_LIMIT == 4_186_112


@pytest.mark.parametrize("name", ["fids", "xattr_bytes", "locks"])
def test_a_limit_of_nothing_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        Limits(**{name: 0})
