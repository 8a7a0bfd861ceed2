"""Runs the tests of this folder and tells the fate of each row of the catalogue, one line each (``make hostile``).

The lines go to standard output, pytest's own progress to standard error. Arguments are handed to pytest.
"""

from __future__ import annotations

import contextlib
import re
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.hostile.catalogue import CATALOGUE

HERE = Path(__file__).parent
_ID = re.compile(r"::test_(h\d{3})_")


class Outcomes:
    """A pytest plugin: what became of the tests of each row."""

    def __init__(self) -> None:
        self.tests: dict[str, dict[str, str]] = {}
        """Row -> test -> passed, skipped or FAILED."""
        self.reasons: dict[str, str] = {}
        """Why a row's tests were skipped."""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take one phase of one test; a failing set-up or clean-up fails the test, too."""
        found = _ID.search(report.nodeid)
        if found is None:
            return
        row = found[1].upper()
        tests = self.tests.setdefault(row, {})
        if report.failed:
            tests[report.nodeid] = "FAILED"
        elif report.skipped:
            tests.setdefault(report.nodeid, "skipped")
            if isinstance(report.longrepr, tuple):
                self.reasons[row] = report.longrepr[2].removeprefix("Skipped: ")
        elif report.when == "call":
            tests.setdefault(report.nodeid, "passed")

    def line(self, row: str) -> tuple[str, str]:
        """The fate of a row in one word, and its line."""
        tests = self.tests.get(row, {})
        about = CATALOGUE[row]
        if not tests:
            if about.waits_for:
                return "waiting", f"{row} waits for {about.waits_for}"
            return "missing", f"{row} MISSING"
        counts = Counter(tests.values())
        fate = "failed" if counts["FAILED"] else "passed" if counts["passed"] else "skipped"
        failed = [test for test, outcome in tests.items() if outcome == "FAILED"]
        shown = failed or sorted({test.partition("[")[0] for test in tests})
        where = shown[0] + "".join(f", {test.partition('::')[2]}" for test in shown[1:])
        word = {"failed": "FAILED"}.get(fate, fate)
        told = ", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items()) if outcome != fate)
        line = f"{row} {word} {where} ({len(tests)} test{'s' * (len(tests) > 1)}{', ' * bool(told)}{told})"
        if fate == "skipped":
            line += f": {self.reasons.get(row, '')}"
        if about.in_part:
            line += f"; waits in part for {about.in_part}"
        return fate, line


def main(arguments: list[str]) -> int:
    """Run the tests; returns the exit status: 0 if no test failed and no row is without one."""
    outcomes = Outcomes()
    with contextlib.redirect_stdout(sys.stderr):
        status = pytest.main([str(HERE), "--benchmark-disable", "-q", *arguments], plugins=[outcomes])
    fates: Counter[str] = Counter()
    for row in CATALOGUE:
        fate, line = outcomes.line(row)
        fates[fate] += 1
        print(line)
    summary = ", ".join(f"{fates[fate]} {fate}" for fate in ("passed", "failed", "skipped", "waiting", "missing"))
    print(f"{len(CATALOGUE)} rows: {summary}")
    return int(status) or bool(fates["failed"] or fates["missing"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
