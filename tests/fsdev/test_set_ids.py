from __future__ import annotations

import stat

import pytest

from pyvirtfs.fsdev.set_ids import without_group_privilege, without_set_ids


@pytest.mark.parametrize(
    ("before", "after"),
    [(0o6755, 0o755), (0o4600, 0o600), (0o2750, 0o750), (0o2640, 0o2640), (0o1755, 0o1755), (0, 0)],
)
def test_who_changes_an_object(before: int, after: int) -> None:
    assert without_set_ids(stat.S_IFREG | before) == stat.S_IFREG | after
    assert without_set_ids(stat.S_IFIFO | before) == stat.S_IFIFO | after
    assert without_set_ids(stat.S_IFDIR | before) == stat.S_IFDIR | before


@pytest.mark.parametrize(
    ("mode", "expected"),
    [(0o2755, 0o755), (0o6755, 0o4755), (0o2745, 0o2745), (0o4755, 0o4755), (0o1777, 0o1777)],
)
def test_who_makes_an_object(mode: int, expected: int) -> None:
    assert without_group_privilege(stat.S_IFREG | mode, stat.S_IFDIR | 0o2777) == stat.S_IFREG | expected
    assert without_group_privilege(stat.S_IFREG | mode, stat.S_IFDIR | 0o5777) == stat.S_IFREG | mode
