from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from pyvirtfs.syscalls import _declarations, _libc
from pyvirtfs.syscalls._linux import ffi, libc


def test_the_checked_in_module_is_what_the_declarations_make() -> None:
    assert Path(_libc.__file__).read_text(encoding="ascii") == _declarations.generate()


def test_main_writes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_declarations, "__file__", str(tmp_path / "_declarations.py"))
    _declarations.main()
    assert (tmp_path / "_libc.py").read_text(encoding="ascii") == _declarations.generate()


@pytest.mark.parametrize("name", re.findall(r"(\w+)\(", _declarations.DECLARATIONS))
def test_the_c_library_has_every_function(name: str) -> None:
    assert ffi.addressof(libc, name) != ffi.NULL


@pytest.mark.parametrize(
    ("structure", "nbytes"),
    [("struct iovec", 16), ("struct open_how", 24), ("struct timespec", 16), ("struct file_handle", 136)],
)
def test_structures_have_the_sizes_of_the_kernels(structure: str, nbytes: int) -> None:
    assert ffi.sizeof(structure) == nbytes


def test_import_parses_no_c() -> None:
    """Which would cost 50 ms."""
    code = "import sys, pyvirtfs.syscalls; print('pycparser' in sys.modules, 'cffi' in sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {sys.path!r}; {code}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.split() == ["False", "False"]
