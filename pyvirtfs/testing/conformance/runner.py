"""All checks on one driver, and the report."""

from __future__ import annotations

import unittest
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from pyvirtfs.testing.conformance.check import CHECKS, Check, Factory
from pyvirtfs.testing.conformance.subject import PATIENCE

Outcome: TypeAlias = Literal["passed", "skipped", "failed"]


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one check."""

    check: Check
    outcome: Outcome
    reason: str = ""
    """Why it was skipped; or what was expected and seen."""

    @property
    def name(self) -> str:
        """The name of the check."""
        return self.check.name


@dataclass(frozen=True, slots=True)
class Report:
    """What became of all checks; as text a table."""

    results: tuple[Result, ...]

    def of(self, outcome: Outcome) -> list[Result]:
        """The results with that outcome."""
        return [result for result in self.results if result.outcome == outcome]

    @property
    def passed(self) -> list[str]:
        """Names of the checks that passed."""
        return [result.name for result in self.of("passed")]

    @property
    def skipped(self) -> dict[str, str]:
        """Names of the checks that were skipped, and why."""
        return {result.name: result.reason for result in self.of("skipped")}

    @property
    def failed(self) -> dict[str, str]:
        """Names of the checks that failed, and what was expected and seen."""
        return {result.name: result.reason for result in self.of("failed")}

    def __str__(self) -> str:
        width = max((len(result.name) for result in self.results), default=0)
        lines = [f"{result.outcome:7}  {result.name:{width}}  {result.reason}".rstrip() for result in self.results]
        counts = (f"{len(self.of(outcome))} {outcome}" for outcome in ("passed", "skipped", "failed"))
        return "\n".join([*lines, ", ".join(counts)])


class ConformanceError(AssertionError):
    """A driver that fails checks; the message lists them all.

    Args:
        report: What became of all checks.
    """

    def __init__(self, report: Report) -> None:
        self.report = report
        failed = report.of("failed")
        lines = [f"{len(failed)} of {len(report.results)} checks failed:"]
        for result in failed:
            lines += [f"  {result.name}: {result.check.promise}", f"    {result.reason}"]
        super().__init__("\n".join(lines))


def driver_checks() -> list[Check]:
    """All checks, to have one test for each: call it with a factory; unittest.SkipTest says that it cannot run."""
    return list(CHECKS)


def check_driver(factory: Factory, *, skip: Mapping[str, str] | None = None, patience: float = PATIENCE) -> Report:
    """Check that a driver does what `pyvirtfs.fsdev.driver` says.

    Args:
        factory: Makes a fresh export, open, and empty if it can be written to; called many times. The checks close it.
        skip: Names of checks that are left out, and why.
        patience: Seconds that an answer which comes later may take.

    Returns:
        What was checked, and what the driver does not offer.

    Raises:
        ConformanceError: Checks failed.
        ValueError: There is no check of a name in `skip`.
    """
    left_out = dict(skip or {})
    if unknown := left_out.keys() - {check.name for check in CHECKS}:
        raise ValueError(f"there are no checks {', '.join(sorted(unknown))}")
    report = Report(tuple(_result(check, factory, left_out.get(check.name, ""), patience) for check in CHECKS))
    if report.failed:
        raise ConformanceError(report)
    return report


def _result(check: Check, factory: Factory, left_out: str, patience: float) -> Result:
    if left_out:
        return Result(check, "skipped", left_out)
    try:
        check(factory, patience=patience)
    except unittest.SkipTest as reason:
        return Result(check, "skipped", str(reason))
    except AssertionError as error:  # also a leaked descriptor
        return Result(check, "failed", str(error))
    except Exception as error:  # noqa: BLE001  # a driver may raise anything; the other checks still have their turn
        return Result(check, "failed", f"{type(error).__name__}: {error}")
    return Result(check, "passed")
