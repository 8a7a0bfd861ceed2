from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyvirtfs.cli.file_modes import ModeChange

actions = st.builds(
    "{}{}".format,
    st.sampled_from("+-="),
    st.one_of(st.sampled_from("ugo"), st.lists(st.sampled_from("rwxXst"), max_size=6).map("".join)),
)
clauses = st.builds("{}{}".format, st.text("ugoa", max_size=3), st.lists(actions, min_size=1, max_size=3).map("".join))
changes = st.lists(clauses, min_size=1, max_size=3).map(",".join)


@pytest.mark.skipif(os.geteuid() != 0, reason="others may not set every bit of their own files")
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(text=changes, before=st.integers(0, 0o7777), umask=st.integers(0, 0o777), is_folder=st.booleans())
def test_symbolic_modes_are_those_of_coreutils(
    text: str, before: int, umask: int, is_folder: bool, tmp_path: Path
) -> None:
    path = tmp_path / ("folder" if is_folder else "file")
    if is_folder:
        path.mkdir(exist_ok=True)
    else:
        path.touch()
    path.chmod(before)
    subprocess.run(["chmod", "--", text, path], check=False, umask=umask, stderr=subprocess.DEVNULL)
    change = ModeChange(text)
    assert change.is_relative
    assert oct(change.applied(before, umask=umask, is_folder=is_folder)) == oct(stat.S_IMODE(path.stat().st_mode))


@pytest.mark.parametrize(
    ("text", "before", "after"),
    [
        ("644", 0o7777, 0o644),
        ("07777", 0, 0o7777),
        ("u+x", 0o644, 0o744),
        ("-x", 0o755, 0o644),
        ("+w", 0o444, 0o644),  # the umask keeps it from the others
        ("go=u", 0o700, 0o777),
        ("a=r,u+w", 0o777, 0o644),
        ("=", 0o777, 0),
        ("u+s,o+t", 0o755, 0o5755),
        ("+X", 0o644, 0o644),
        ("+X", 0o744, 0o755),
    ],
)
def test_one_by_one(text: str, before: int, after: int) -> None:
    assert ModeChange(text).applied(before, umask=0o022, is_folder=False) == after


@pytest.mark.parametrize("text", ["", "X", "u", "8", "10000", "u+q", "u+x,", "u+ug"])
def test_what_is_no_mode(text: str) -> None:
    with pytest.raises(ValueError, match="mode"):
        ModeChange(text)
