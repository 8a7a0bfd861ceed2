"""Every row of the catalogue has a test or says what it waits for, and `make hostile` tells of each."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.hostile.catalogue import CATALOGUE, Row
from tests.hostile.report import Outcomes

HERE = Path(__file__).parent


def names_of_tests() -> list[str]:
    """The names of all tests of the modules in this folder."""
    return [
        node.name
        for path in sorted(HERE.glob("test_*.py"))
        if path != Path(__file__)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    ]


def rows() -> set[str]:
    """The rows that have tests."""
    return {name.split("_")[1].upper() for name in names_of_tests()}


@pytest.mark.parametrize("row", CATALOGUE)
def test_each_row_has_a_test_or_waits_for_something(row: str) -> None:
    assert (row in rows()) is not bool(CATALOGUE[row].waits_for)


def test_each_test_has_a_row_and_no_name_twice() -> None:
    found = names_of_tests()
    assert all(re.match(r"test_h\d{3}_\w", name) for name in found)
    assert len(found) == len(set(found))
    assert rows() <= set(CATALOGUE)


def test_rows_are_in_order_and_say_what_they_are_about() -> None:
    assert list(CATALOGUE) == sorted(CATALOGUE)
    assert all(re.fullmatch(r"H\d{3}", row) and found.about for row, found in CATALOGUE.items())
    assert not any(found.waits_for and found.in_part for found in CATALOGUE.values())


def report(test: str, *, when: str = "call", outcome: str = "passed", reason: str = "") -> Any:
    skipped = ("file", 1, f"Skipped: {reason}") if outcome == "skipped" else None
    return SimpleNamespace(
        nodeid=f"tests/hostile/{test}", when=when, failed=outcome == "failed", skipped=outcome == "skipped",
        longrepr=skipped,
    )  # fmt: skip


@pytest.fixture
def outcomes(monkeypatch: pytest.MonkeyPatch) -> Outcomes:
    monkeypatch.setitem(CATALOGUE, "H001", Row("something"))
    monkeypatch.setitem(CATALOGUE, "H002", Row("something", in_part="later work"))
    monkeypatch.setitem(CATALOGUE, "H003", Row("something", waits_for="later work"))
    return Outcomes()


def test_line_of_a_row_that_passed(outcomes: Outcomes) -> None:
    for name in ("test_a.py::test_h001_x[1]", "test_a.py::test_h001_x[2]", "test_a.py::test_h001_y"):
        for when in ("setup", "call", "teardown"):
            outcomes.pytest_runtest_logreport(report(name, when=when))
    fate, line = outcomes.line("H001")
    assert fate == "passed"
    assert line == "H001 passed tests/hostile/test_a.py::test_h001_x, test_h001_y (3 tests)"
    outcomes.pytest_runtest_logreport(report("test_a.py::test_h002_x"))
    assert outcomes.line("H002")[1].endswith("(1 test); waits in part for later work")


@pytest.mark.parametrize("when", ["setup", "call", "teardown"])
def test_line_of_a_row_that_failed(outcomes: Outcomes, when: str) -> None:
    outcomes.pytest_runtest_logreport(report("test_a.py::test_h001_x"))
    outcomes.pytest_runtest_logreport(report("test_a.py::test_h001_x[2]"))
    outcomes.pytest_runtest_logreport(report("test_a.py::test_h001_x[2]", when=when, outcome="failed"))
    assert outcomes.line("H001") == (
        "failed", "H001 FAILED tests/hostile/test_a.py::test_h001_x[2] (2 tests, 1 FAILED, 1 passed)",
    )  # fmt: skip


def test_lines_of_rows_without_results(outcomes: Outcomes) -> None:
    assert outcomes.line("H001") == ("missing", "H001 MISSING")
    assert outcomes.line("H003") == ("waiting", "H003 waits for later work")
    outcomes.pytest_runtest_logreport(report("test_a.py::test_other"))
    assert not outcomes.tests
    outcomes.pytest_runtest_logreport(
        report("test_a.py::test_h001_x", when="setup", outcome="skipped", reason="needs root")
    )
    assert outcomes.line("H001") == (
        "skipped", "H001 skipped tests/hostile/test_a.py::test_h001_x (1 test): needs root",
    )  # fmt: skip
