from __future__ import annotations

import pytest

from pyvirtfs.errors import ConfigError
from pyvirtfs.stream.limits import Limits


@pytest.mark.parametrize("name", ["connections", "buffered", "first_message", "goodbye", "stalled"])
@pytest.mark.parametrize("value", [0, -1])
def test_limits_are_positive(name: str, value: int) -> None:
    with pytest.raises(ConfigError, match=f"^{name}: {value} is not positive"):
        Limits(**{name: value})
