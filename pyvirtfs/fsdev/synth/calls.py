"""Calls of the functions that a program has put behind files: what they do is made an answer for the guest."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable
from typing import Any, Final, Never, TypeAlias, TypeVar

from pyvirtfs.fsdev.completion import Completion, then

_log: Final = logging.getLogger(__name__)

T = TypeVar("T")

Text: TypeAlias = bytes | bytearray | memoryview | str
"""What a file may hold; str is encoded as UTF-8."""


def to_bytes(text: Text) -> bytes:
    """The bytes of what a file holds. Raises TypeError if it is something else."""
    if isinstance(text, str):
        return text.encode()
    if isinstance(text, (bytes, bytearray, memoryview)):
        return bytes(text)
    raise TypeError(f"a file holds bytes or str, not {type(text).__name__}")


def ask(what: str, function: Callable[[], Any], convert: Callable[[Any], T]) -> T | Completion[T]:
    """Call a program's function.

    Args:
        what: What it is for, for the log.
        function: It; may return a `Completion`.
        convert: Makes an answer of what it returns.

    Raises:
        OSError: What the function raises; EIO for anything else that it raises, which is logged.
    """

    def converted(value: Any) -> T:
        try:
            return convert(value)
        except OSError:
            raise
        except Exception:  # noqa: BLE001  # it is the program's, and may be anything
            _fail(what)

    try:
        answer = function()
    except OSError as error:
        if error.errno is None:
            _fail(what)
        raise
    except Exception:  # noqa: BLE001  # a function of the program may raise anything; it is logged, and EIO for the guest
        _fail(what)
    return then(answer, converted)


def _fail(what: str) -> Never:
    """EIO in place of the exception that is being handled."""
    _log.exception("%s failed", what)
    raise OSError(errno.EIO, os.strerror(errno.EIO)) from None
