"""What a check is, and what a driver offers: a check runs only where the methods that it needs are there."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import unittest
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from pyvirtfs.fsdev.driver import ExportDriver, Lock, LockHolder, SetAttributes
from pyvirtfs.memory.buffers import ViewBuffers
from pyvirtfs.testing.conformance.subject import PATIENCE, CheckError, Subject, error_name, require
from pyvirtfs.testing.descriptors import check_descriptors

Factory: TypeAlias = Callable[[], ExportDriver[Any, Any]]
"""Makes a fresh export, open, and empty if it can be written to. The checks close it."""

OTHER_UID: Final = 12345
OTHER_GID: Final = 23456
LOCK: Final = Lock(exclusive=True, start=0, end=10, proc_id=1, client_id=b"guest")

READONLY: Final = "readonly"
"""What a check needs that is about read-only exports only."""


def _probe_file(export: Subject) -> Any:
    return export.make_file(b"probe")


def _probe_write(export: Subject) -> None:
    node, file, _ = export.create(export.root, b"probe", os.O_RDWR, 0o644, 0, 0)
    export.write(file, 0, ViewBuffers.of(b"x"))
    export.close_file(file)
    export.release(node)


def _probe_owners(export: Subject) -> None:
    node = _probe_file(export)
    export.setattr(node, SetAttributes(uid=OTHER_UID, gid=OTHER_GID), 0)
    if export.attributes(node)[1:3] != (OTHER_UID, OTHER_GID):
        raise OSError(errno.EOPNOTSUPP, "owners are not kept as the guest gives them")


def _probe_device(export: Subject) -> None:
    export.mknod(export.root, b"device", stat.S_IFCHR | 0o600, 1, 3, 0, 0)


def _probe_unlink(export: Subject) -> None:
    _probe_file(export)
    export.unlinkat(export.root, b"probe", folder=False)


def _probe_place(export: Subject) -> None:
    if export.place(_probe_file(export))[0] is None:
        raise OSError(errno.EOPNOTSUPP, "the driver does not know where an object is")


def _probe_acls(export: Subject) -> None:
    export.getxattr(_probe_file(export), b"system.posix_acl_access")


_PROBES: Final[Mapping[str, Callable[[Subject], Any]]] = {
    "create": _probe_file,
    "write": _probe_write,
    "mkdir": lambda export: export.mkdir(export.root, b"probe", 0o755, 0, 0),
    "symlink": lambda export: export.symlink(export.root, b"probe", b"target", 0, 0),
    "mknod": lambda export: export.mknod(export.root, b"probe", stat.S_IFIFO | 0o644, 0, 0, 0, 0),
    "devices": _probe_device,
    "link": lambda export: export.link(export.root, _probe_file(export), b"probe2"),
    "rename": lambda export: export.rename(_probe_file(export), export.root, b"probe2"),
    "renameat": lambda export: (
        _probe_file(export),
        export.renameat(export.root, b"probe", export.root, b"probe2"),
    ),
    "unlinkat": _probe_unlink,
    "remove": lambda export: export.remove(_probe_file(export)),
    "chmod": lambda export: export.setattr(_probe_file(export), SetAttributes(mode=0o600), 0),
    "utimes": lambda export: export.setattr(_probe_file(export), SetAttributes(mtime_ns=1), 0),
    "truncate": lambda export: export.setattr(_probe_file(export), SetAttributes(size=1), 0),
    "owners": _probe_owners,
    "place": _probe_place,
    "xattrs": lambda export: export.setxattr(_probe_file(export), b"user.probe", b"x", 0, 0),
    "acls": _probe_acls,
    "locks": lambda export: export.lock(_probe_file(export), LOCK, LockHolder(object())),
}
_ROOT_ONLY: Final = frozenset({"devices", "owners"})
"""What a process may be refused that is not root."""


def missing(needs: tuple[str, ...], factory: Factory, patience: float) -> str:
    """Why a check that has these needs cannot run; empty if it can."""
    for need in needs:
        with contextlib.closing(factory()) as driver:
            if need == READONLY or driver.readonly:
                if (need == READONLY) == driver.readonly:
                    continue
                return "the export is read-only" if driver.readonly else "the export is not read-only"
            try:
                _PROBES[need](Subject(driver, patience))
            except OSError as error:
                if error.errno == errno.EOPNOTSUPP:
                    return f"{need} is not offered"
                if need in _ROOT_ONLY and error.errno == errno.EPERM:
                    return f"{need} needs privileges that this process lacks"
            except CheckError:
                pass  # the checks tell what is wrong with it
    return ""


@dataclass(frozen=True, slots=True)
class Check:
    """One sentence of the contract, as a test."""

    name: str
    """Theme and function: ``listings.cookies_survive_deletion``."""
    promise: str
    """What the contract says."""
    needs: tuple[str, ...]
    """What the driver has to offer."""
    body: Callable[[Subject], None]

    def __str__(self) -> str:
        return self.name

    def __call__(self, factory: Factory, *, patience: float = PATIENCE) -> None:
        """Run it on fresh exports.

        Args:
            factory: Makes them.
            patience: Seconds that an answer which comes later may take.

        Raises:
            CheckError: The driver does not do what the contract says.
            unittest.SkipTest: The driver does not offer what the check needs; pytest takes it for a skipped test.
        """
        reason = missing(self.needs, factory, patience)
        if reason:
            raise unittest.SkipTest(reason)
        with check_descriptors():
            driver = factory()
            try:
                self._run(driver, patience)
            finally:
                driver.close()
            driver.close()  # idempotent

    def _run(self, driver: ExportDriver[Any, Any], patience: float) -> None:
        export: Subject | None = None
        try:
            export = Subject(driver, patience)
            self.body(export)
        except OSError as error:
            failed = "attach" if export is None else export.failed
            raise CheckError(f"{failed}: expected to succeed, saw {error_name(error.errno)}") from error
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            # The check could not make sense of what it got.
            last = "attach" if export is None else export.last
            raise CheckError(f"{last}: its answer is not what the contract says: {error!r}") from error


CHECKS: Final[list[Check]] = []
"""All checks, in the order of their modules."""


def check(*needs: str) -> Callable[[Callable[[Subject], None]], Check]:
    """Make a function a check.

    Args:
        needs: What the driver has to offer, words of `_PROBES` or `READONLY`.
    """
    assert all(need in _PROBES or need == READONLY for need in needs), needs

    def make(body: Callable[[Subject], None]) -> Check:
        theme = body.__module__.rpartition(".")[2]
        promise = " ".join((body.__doc__ or "").split())
        require(promise, f"{body.__name__} says nothing")
        made = Check(f"{theme}.{body.__name__}", promise, needs, body)
        CHECKS.append(made)
        return made

    return make
