from __future__ import annotations

import errno
import os

import pytest

from pyvirtfs.syscalls import _linux


def test_an_error_tells_number_text_and_path() -> None:
    error = _linux.error(errno.ENOENT, b"/x")
    assert isinstance(error, FileNotFoundError)
    assert (error.errno, error.strerror, error.filename) == (errno.ENOENT, os.strerror(errno.ENOENT), b"/x")


def test_a_failed_call_raises_unless_it_was_interrupted() -> None:
    _linux.ffi.errno = errno.EACCES
    with pytest.raises(PermissionError):
        _linux.fail(b"x")
    _linux.ffi.errno = errno.EINTR
    _linux.fail()  # the caller tries again


def test_paths_end_at_their_end() -> None:
    assert _linux.no_nul(b"a/b") == b"a/b"
    with pytest.raises(OSError, match="Invalid") as caught:
        _linux.no_nul(b"a\0b")
    assert caught.value.errno == errno.EINVAL


def test_system_call_converts_its_arguments() -> None:
    getpid = {"x86_64": 39, "aarch64": 172}.get(os.uname().machine)
    if getpid is None:
        pytest.skip("the number of getpid is not known here")
    assert _linux.system_call("long (*)(long)")(getpid) == os.getpid()
    with pytest.raises(TypeError):
        _linux.system_call("long (*)(long, int)")(getpid, b"bytes")
