from __future__ import annotations

from typing import Any

import pytest

from pyvirtfs.fsdev.local import LocalDriver

Good: Any = LocalDriver


def qid_of(change: Any) -> Any:
    def getattr_(self: Any, node: Any) -> Any:
        qid, attributes = Good.getattr(self, node)
        return change(qid, attributes), attributes

    return getattr_


def of_name(self: Any, node: Any) -> Any:
    qid, attributes = Good.getattr(self, node)
    return qid._replace(path=hash(node.name) & 0xFFFF_FFFF_FFFF), attributes


def counting(self: Any, node: Any) -> Any:
    self.count = getattr(self, "count", 0) + 1
    qid, attributes = Good.getattr(self, node)
    return qid._replace(version=self.count), attributes


def walk_of_version_1(self: Any, node: Any, names: Any) -> Any:
    found = Good.walk(self, node, names)
    return found._replace(qids=[qid._replace(version=1) for qid in found.qids])


@pytest.mark.parametrize(
    ("check", "method", "fault", "seen"),
    [
        (
            "every_write_changes_the_version",
            "getattr",
            qid_of(lambda qid, a: qid._replace(version=a.mtime_sec ^ a.size << 8)),
            "as before after write",
        ),
        (
            "every_write_changes_the_version",
            "getattr",
            qid_of(lambda qid, a: qid._replace(version=0)),
            "the version is 0",
        ),
        (
            "every_truncation_changes_the_version",
            "getattr",
            qid_of(lambda qid, a: qid._replace(version=a.mtime_sec & 0xFFFF_FFFF)),
            "as before",
        ),
        (
            "folders_have_versions",
            "getattr",
            qid_of(lambda qid, a: qid._replace(version=7)),
            "as before after a file was made",
        ),
        (
            "versions_do_not_come_back",
            "getattr",
            qid_of(lambda qid, a: qid._replace(version=a.size + 1)),
            "how many versions",
        ),
        ("reading_does_not_change_the_version", "getattr", counting, "the qid after reading"),
        ("walk_getattr_and_open_agree", "walk", walk_of_version_1, "walk's qid"),
        (
            "paths_are_different",
            "getattr",
            qid_of(lambda qid, a: qid._replace(path=a.size)),
            "how many paths are different",
        ),
        ("paths_stay", "getattr", of_name, "the path after the changes"),
        ("links_share_a_path", "getattr", of_name, "the qid under the second name"),
        ("paths_are_not_used_again", "getattr", of_name, "how many paths are different"),
    ],
)
def test_faults_are_found(faulty: Any, check: str, method: str, fault: Any, seen: str) -> None:
    assert seen in faulty.failure(f"qids.{check}", {method: fault})
