"""The driver `local`: a folder of the host, as QEMU's local driver offers it.

A handle owns descriptors, not paths. So a rename, an unlink of an open file, or a symbolic link that the host puts into
the way needs no path surgery, cost does not grow with depth, and nothing outside the export is within reach.

But a handle stays good for as long as it is held: a folder that the host moves out of the export, and what is in it,
can be read and changed by a guest that holds a fid there. Only ``..`` notices. To take a folder away from a guest,
remove it, or reset the device after moving it.

Descriptors are what a guest could take from the program around the driver. So each driver has a budget of them, beyond
which requests fail with ENFILE. Several drivers in one process share its RLIMIT_NOFILE: give each its part.

The modules `local_names`, `local_create`, `local_files`, `local_attributes` and `local_locks` hold the operations.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from pyvirtfs.errors import ConfigError
from pyvirtfs.fsdev.capabilities import missing_capabilities
from pyvirtfs.fsdev.driver import Qid
from pyvirtfs.fsdev.entries import PATH_FLAGS, Node
from pyvirtfs.fsdev.ids import Ids, Squash, translation
from pyvirtfs.fsdev.local_attributes import LocalAttributes
from pyvirtfs.fsdev.local_create import LocalCreate
from pyvirtfs.fsdev.local_locks import LocalLocks
from pyvirtfs.fsdev.local_names import LocalNames
from pyvirtfs.fsdev.local_space import LocalSpace
from pyvirtfs.fsdev.options import Option, OptionTable, OptionValue
from pyvirtfs.fsdev.registry import DriverType
from pyvirtfs.fsdev.security import MODELS, TRANSLATED, MappedModel, SecurityModel
from pyvirtfs.fsdev.security.mapped import FILE_MODE, FOLDER_MODE
from pyvirtfs.fsdev.space import OPTIONS as SPACE_OPTIONS
from pyvirtfs.fsdev.space import SpaceLimits
from pyvirtfs.fsdev.throttling import OPTIONS as THROTTLING_OPTIONS
from pyvirtfs.fsdev.throttling import Throttle, Throttling

_log = logging.getLogger(__name__)

OPTIONS: Final = OptionTable(
    "fsdev driver 'local'",
    (
        Option(name="path", required=True, help="The folder to export"),
        Option(
            name="security_model",
            type="choice",
            required=True,
            choices=tuple(MODELS),
            help="What becomes of the guest's owners and modes",
        ),
        Option(name="fmode", type="mode", help="Mode of files on the host, mapped models only: 0600 unless given"),
        Option(name="dmode", type="mode", help="Mode of folders on the host, mapped models only: 0700 unless given"),
        Option(name="uidmap", help="Users, passthrough and none only: GUEST:HOST:COUNT[+GUEST:HOST:COUNT...]"),
        Option(name="gidmap", help="Groups, the same"),
        Option(name="squash", help="One user and group of the host for all of the guest: UID[:GID]"),
        Option(
            name="device_nodes",
            type="bool",
            help="Let guests make character and block devices: on unless given, but off with id maps",
        ),
        Option(name="readonly", type="bool", default=False, help="Refuse every change"),
        Option(
            name="writeout",
            type="choice",
            choices=("immediate",),
            help="Start to write data to the disk with each write",
        ),
        Option(
            name="multidevs",
            type="choice",
            default="remap",
            choices=("remap", "forbid", "warn"),
            help="Files of other devices below the export: give them numbers of their own, refuse them, or only warn",
        ),
        *THROTTLING_OPTIONS,
        *SPACE_OPTIONS,
    ),
)
_SAME_NAMES: Final = (
    "path", "security_model", "fmode", "dmode", "uidmap", "gidmap", "squash", "device_nodes", "readonly", "writeout",
    "multidevs",
)  # fmt: skip
"""The options that are arguments of the driver as they are."""
_LIMITS: Final = ("space_hard_limit", "space_soft_limit")
_IDLE_IF_READONLY: Final = {
    "fmode": "no file is made that would have it",
    "dmode": "no folder is made that would have it",
    "device_nodes": "no guest makes any",
    "space_hard_limit": "nobody comes up against it: it only is the size that the guest is told",
}
"""What somebody gives because of an effect that never comes if nothing may change, and why not."""


def open_root(path: str) -> int:
    """An ``O_PATH`` descriptor of an export's root.

    Raises:
        ConfigError: It is not there, not a folder, or cannot be reached.
    """
    try:
        # The person who sets the export up may name it through symbolic links; the guest may not.
        return os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except NotADirectoryError:
        raise ConfigError("path", f"{path!r} is not a folder") from None
    except FileNotFoundError:
        raise ConfigError("path", f"{path!r} does not exist") from None
    except OSError as error:
        raise ConfigError("path", f"{path!r} cannot be opened: {error.strerror}") from None
    except ValueError as error:  # a NUL in it
        raise ConfigError("path", f"{path!r} cannot be opened: {error}") from None


def _open_without_links(path: str) -> int:
    """An ``O_PATH`` descriptor of what is at an absolute path; ENOTDIR where a symbolic link is on the way to it."""
    fd = os.open("/", PATH_FLAGS)
    try:
        for name in filter(None, path.split("/")):
            below = os.open(name, PATH_FLAGS, dir_fd=fd)
            os.close(fd)
            fd = below
    except OSError:
        os.close(fd)
        raise
    return fd


def _check_folder(path: str, mode: int) -> None:
    if not stat.S_ISDIR(mode):
        raise ConfigError("path", f"{path!r} is not a folder")


def make_model(name: str, fmode: int | None, dmode: int | None, ids: tuple[Ids, Ids] | None) -> SecurityModel:
    """The security model of that name; `ids` only for one of `TRANSLATED`.

    Raises:
        ConfigError: It has no use for `fmode` or `dmode`, and one of them is given.
    """
    model = MODELS[name]
    if issubclass(model, MappedModel):
        return model(FILE_MODE if fmode is None else fmode, FOLDER_MODE if dmode is None else dmode)
    for option, value in (("fmode", fmode), ("dmode", dmode)):
        if value is not None:
            mapped = [name for name, model in MODELS.items() if model.mapped]
            raise ConfigError(
                option, f"belongs to the mapped models ({', '.join(mapped)}), and security_model is {name!r}"
            )
    return model() if ids is None else TRANSLATED[name](*ids)


def _model_and_ids(
    security_model: str,
    fmode: int | None,
    dmode: int | None,
    uidmap: str | None,
    gidmap: str | None,
    squash: str | None,
) -> tuple[SecurityModel, tuple[Ids, Ids] | None]:
    """What these options mean together.

    Raises:
        ConfigError: One is wrong, or two contradict each other.
    """
    ids = translation(uidmap, gidmap, squash)
    for option, text in (("uidmap", uidmap), ("gidmap", gidmap), ("squash", squash)):
        if text is not None and security_model not in TRANSLATED:
            raise ConfigError(
                option,
                f"{text!r} contradicts security_model={security_model}, with which the server owns everything on"
                f" the host; it belongs to {' and '.join(TRANSLATED)}",
            )
    return make_model(security_model, fmode, dmode, ids), ids


def _space_limits(values: Mapping[str, OptionValue]) -> SpaceLimits | None:
    hard, soft = (None if (limit := values[name]) is None else int(limit) for name in _LIMITS)
    return None if hard is None and soft is None else SpaceLimits(hard, soft)


def check_options(values: Mapping[str, OptionValue]) -> None:
    """See what can be seen of the values of `OPTIONS` without looking at this machine; warn of what has no effect.

    Raises:
        ConfigError: Two contradict each other, or one cannot be.
    """
    options: dict[str, Any] = {
        name: values[name] for name in ("security_model", "fmode", "dmode", "uidmap", "gidmap", "squash")
    }
    _model_and_ids(**options)
    Throttling.from_options(values)
    _space_limits(values)
    if values["readonly"]:
        for name, reason in _IDLE_IF_READONLY.items():
            if values[name] is not None and values[name] is not False:
                _log.warning("%s: has no effect with readonly=on: %s", name, reason)


def check_privilege(model: SecurityModel, ids: tuple[Ids, Ids] | None) -> None:
    """See that this process may do what a model does, before a guest finds out.

    Raises:
        ConfigError: It may not.
    """
    if missing := missing_capabilities(model.capabilities):
        raise ConfigError(
            "security_model",
            f"{model.name!r} needs {', '.join(missing)}, which this process lacks: run it as root, or with readonly=on",
            ("none",),
        )
    if ids is None or not missing_capabilities(("CAP_CHOWN",)):
        return
    own = {os.geteuid()}, {os.getegid(), *os.getgroups()}
    for option, translated, mine in zip(("uidmap", "gidmap"), ids, own, strict=True):
        if not translated.within(mine):
            raise ConfigError(
                "squash" if isinstance(translated, Squash) else option,
                "giving files to others needs CAP_CHOWN, which this process lacks: run it as root, with readonly=on,"
                f" or name no ids of the host but its own ({', '.join(map(str, sorted(mine)))})",
            )


class LocalDriver(LocalCreate, LocalNames, LocalAttributes, LocalLocks):
    """An export of a folder of the host.

    Not safe for use by several threads at once: give each session that runs in a thread of its own its own driver.

    Args:
        path: The folder; an existing one.
        security_model: ``passthrough``, ``mapped`` (the same as ``mapped-xattr``), ``mapped-file`` or ``none``.
        fmode: Permission bits of files on the host, with a mapped model; 0600 unless given.
        dmode: Permission bits of folders on the host, with a mapped model; 0700 unless given.
        uidmap: Which user of the host stands for which of the guest, with ``passthrough`` and ``none``: ranges
            ``GUEST:HOST:COUNT``, with ``+`` between them.
        gidmap: The same for groups.
        squash: ``UID[:GID]``: whoever creates something, it belongs to this user and group of the host.
        device_nodes: Whether guests may make character and block devices, as far as the process may. None: yes, unless
            ids are translated, since whoever may make devices of the host is no mere user of it.
        readonly: Change nothing on the host.
        writeout: ``immediate``: start to write data to the disk with each write.
        multidevs: What becomes of objects on other devices than the root's: ``remap`` gives them qid paths of their
            own, ``forbid`` refuses them with ENODEV and logs where they are mounted, ``warn`` lets their inode numbers
            collide and logs one warning.
        max_descriptors: How many descriptors the guest may make this process hold, one for each object that it knows,
            each open file, each owner of locks on a file; and up to 6 more where nothing else can be closed. None: what
            the soft limit RLIMIT_NOFILE allows now, but for a quarter (64 at least).
        throttling: How much may be read and written per second; None: as much as the host can.

    Raises:
        ConfigError: An option is wrong, or this process cannot do what it says.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        security_model: str = "none",
        *,
        fmode: int | None = None,
        dmode: int | None = None,
        uidmap: str | None = None,
        gidmap: str | None = None,
        squash: str | None = None,
        device_nodes: bool | None = None,
        readonly: bool = False,
        writeout: str | None = None,
        multidevs: str = "remap",
        max_descriptors: int | None = None,
        throttling: Throttling | None = None,
    ) -> None:
        OPTIONS.options["security_model"].parse(security_model)
        OPTIONS.options["multidevs"].parse(multidevs)
        if writeout is not None:
            OPTIONS.options["writeout"].parse(writeout)
        if max_descriptors is not None and max_descriptors < 1:
            raise ConfigError("max_descriptors", f"{max_descriptors} is not enough: the root needs one")
        model, ids = _model_and_ids(security_model, fmode, dmode, uidmap, gidmap, squash)
        if not readonly:
            check_privilege(model, ids)
        root_fd = open_root(os.fspath(path))
        self._path = os.path.realpath(path)  # the program may go to another folder
        if not Path(f"/proc/self/fd/{root_fd}").exists():
            os.close(root_fd)
            raise ConfigError("path", "/proc is not mounted, and the driver needs it")
        try:
            model.check_root(root_fd, os.fspath(path), readonly=readonly)
        except ConfigError:
            os.close(root_fd)
            raise
        try:
            super().__init__(
                root_fd,
                model,
                readonly=readonly,
                multidevs=multidevs,
                write_back=writeout == "immediate",
                set_ids_survive=model.mapped or not missing_capabilities(("CAP_FSETID",)),
                max_descriptors=max_descriptors,
                device_nodes=ids is None if device_nodes is None else device_nodes,
            )
        except OSError as error:
            raise ConfigError("path", f"{os.fspath(path)!r} cannot be exported: {error}") from None
        self.throttle = None if throttling is None else Throttle(throttling)

    @classmethod
    def from_options(cls, values: Mapping[str, OptionValue]) -> LocalDriver:
        """Make one from the values of `OPTIONS`; raises ConfigError."""
        options: dict[str, Any] = {name: values[name] for name in _SAME_NAMES}
        options["throttling"] = Throttling.from_options(values)
        limits = _space_limits(values)
        return cls(**options) if limits is None else LimitedLocalDriver(limits=limits, **options)

    def close(self) -> None:
        """See `ExportDriver.close`."""
        for file in list(self._files):
            try:
                self.close_file(file)
            except OSError as error:
                if error.errno == errno.EBADF:
                    raise
        self._lock_waits.close()
        for path, owner in list(self._pinned):
            self._unpin(path, owner)
        self._close_tree()

    def attach(self, aname: bytes, uid: int) -> tuple[Node, Qid]:
        """See `ExportDriver.attach`: whatever tree the guest asks for, it is the export's root, as QEMU does it.

        That is what is at the path now. It may have been removed and made again, unmounted and mounted again; but as
        long as a guest has anything of the tree that was there, it is that one.

        The person who has set the export up may have named it through symbolic links; since then no new one is
        followed: another guest may have made it, whose export holds this one.

        Raises:
            OSError: ENOENT, ENOTDIR: nothing is there. EINVAL: what is there cannot be exported.
        """
        if self._is_idle:
            try:
                fd = _open_without_links(self._path)
            except (FileNotFoundError, NotADirectoryError):
                raise
            except OSError:  # a process that gave its privileges up since then may not look any more
                return super().attach(aname, uid)
            there = os.fstat(fd)
            here = self._table.stat(self._table.root.fd)
            if (there.st_ino, os.major(there.st_dev), os.minor(there.st_dev)) == (
                here.ino, here.dev_major, here.dev_minor,
            ):  # fmt: skip
                os.close(fd)
            else:
                self._move(fd, there.st_mode)
        return super().attach(aname, uid)

    def _move(self, root_fd: int, mode: int) -> None:
        """Export what is at the path now, or else what was; `root_fd` belongs to the driver, also if this raises."""
        try:
            _check_folder(self._path, mode)
            self._model.check_root(root_fd, self._path, readonly=self.readonly)
        except ConfigError as error:
            os.close(root_fd)
            _log.warning("%s", error)
            raise OSError(errno.EINVAL, str(error)) from None
        listings, table, closer = self._listings, self._table, self._closer
        try:
            self._open_tree(root_fd)
        except OSError:
            if self._listings is not listings:
                self._close_tree()
            self._listings, self._table, self._closer = listings, table, closer
            self._model.table = table
            raise
        listings.close()
        table.close()


class LimitedLocalDriver(LocalSpace, LocalDriver):
    """An export of a folder of the host that may hold only so much.

    Args:
        path: As for `LocalDriver`.
        security_model: The same.
        limits: How much it may hold.
        options: The same.

    Raises:
        ConfigError: An option is wrong, or this process cannot do what it says.
    """

    def __init__(
        self, path: str | os.PathLike[str], security_model: str = "none", *, limits: SpaceLimits, **options: Any
    ) -> None:
        super().__init__(path, security_model, **options)
        try:
            self.watch(limits)
        except OSError as error:
            self.close()
            raise ConfigError("path", f"what {os.fspath(path)!r} holds cannot be measured: {error.strerror}") from None


DRIVER: Final = DriverType("local", LocalDriver.from_options, OPTIONS, "A folder of this machine", check_options)
