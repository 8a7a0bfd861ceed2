"""The conformance suite of export drivers: what `pyvirtfs.fsdev.driver` promises, one small check for each sentence.

The author of a driver writes one line:

    check_driver(MyDriver)

or has one test for each check:

    @pytest.mark.parametrize("check", driver_checks(), ids=str)
    def test_my_driver(check):
        check(MyDriver)

What a driver does not offer (a method that answers EOPNOTSUPP, as the bodies of `ExportDriver` do) is skipped, with the
reason in the report. A read-only export may hold anything; the checks look at what they find.
"""

from pyvirtfs.testing.conformance import (
    attributes,
    content,
    errors,
    files,
    handles,
    links,
    listings,
    locks,
    names,
    qids,
    renaming,
    times,
    tree,
    xattrs,
)
from pyvirtfs.testing.conformance.check import Check, Factory
from pyvirtfs.testing.conformance.runner import ConformanceError, Report, Result, check_driver, driver_checks
from pyvirtfs.testing.conformance.subject import CheckError

__all__ = [
    "Check",
    "CheckError",
    "ConformanceError",
    "Factory",
    "Report",
    "Result",
    "attributes",
    "check_driver",
    "content",
    "driver_checks",
    "errors",
    "files",
    "handles",
    "links",
    "listings",
    "locks",
    "names",
    "qids",
    "renaming",
    "times",
    "tree",
    "xattrs",
]
