from __future__ import annotations

import pytest

from pyvirtfs.p9 import constants as c
from pyvirtfs.p9 import results
from pyvirtfs.p9.messages import BY_NAME


@pytest.mark.parametrize(
    ("type_", "directory", "symlink"),
    [(c.QTDIR, True, False), (c.QTSYMLINK, False, True), (c.QTFILE, False, False), (c.QTDIR | c.QTMOUNT, True, False)],
)
def test_what_a_qid_says(type_: int, directory: bool, symlink: bool) -> None:
    qid = results.Qid(type_, 1, 2)
    assert (qid.is_directory, qid.is_symlink) == (directory, symlink)


def test_times_are_nanoseconds() -> None:
    seconds = dict.fromkeys(results.Attributes._fields, 0) | {"atime_sec": 1, "mtime_sec": -1, "ctime_sec": 2**33}
    attributes = results.Attributes(**{**seconds, "atime_nsec": 2, "mtime_nsec": 3, "ctime_nsec": 4})  # type: ignore[arg-type]  # an int for the qid will do
    assert (attributes.atime_ns, attributes.mtime_ns) == (1_000_000_002, -999_999_997)
    assert attributes.ctime_ns == 2**33 * 10**9 + 4


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (results.Version, "Rversion"),
        (results.Opened, "Rlopen"),
        (results.Opened, "Rlcreate"),
        (results.Attributes, "Rgetattr"),
        (results.FileSystem, "Rstatfs"),
        (results.LockRange, "Rgetlock"),
    ],
)
def test_fields_are_in_wire_order(result: type[tuple[object, ...]], message: str) -> None:
    declared = [field.name for field in BY_NAME[message].body.subcons]
    assert list(result._fields) == declared  # type: ignore[attr-defined]  # a named tuple has them
