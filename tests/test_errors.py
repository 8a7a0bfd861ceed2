from __future__ import annotations

import pytest

from pyvirtfs import errors
from pyvirtfs.errors import ConfigError, DeviceError, GuestError, MemoryAccessError, MessageError, QueueError

CLASSES = [each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, BaseException)]


def test_one_root() -> None:
    assert len(CLASSES) == 7
    assert all(issubclass(each, errors.PyvirtfsError) for each in CLASSES)


def test_the_families_are_apart() -> None:
    assert all(issubclass(each, GuestError) for each in (MemoryAccessError, QueueError, MessageError))
    for one in (ConfigError, GuestError, DeviceError, OSError):
        for other in (ConfigError, GuestError, DeviceError, OSError):
            assert one is other or not issubclass(one, other)


def test_a_config_error_is_one_line_and_a_value_error() -> None:
    error = ConfigError("security_model", "'foo' is not a known value", iter(["passthrough", "none"]))
    assert isinstance(error, ValueError)
    assert str(error) == "security_model: 'foo' is not a known value (choose from passthrough, none)"
    assert (error.option, error.problem) == ("security_model", "'foo' is not a known value")
    assert error.choices == ("passthrough", "none")
    assert str(ConfigError("path", "missing")) == "path: missing"


@pytest.mark.parametrize(("address", "nbytes"), [(0, 1), (0xFFFFFFFFFFFFFFF0, 0xFFFFFFFF)])
def test_a_memory_access_error_says_where(address: int, nbytes: int) -> None:
    error = MemoryAccessError(address, nbytes)
    assert (error.address, error.nbytes) == (address, nbytes)
    assert f"{address:#x}" in str(error)
    assert str(error).startswith(f"{nbytes} bytes")
