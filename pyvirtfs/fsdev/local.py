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
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from pyvirtfs.errors import ConfigError
from pyvirtfs.fsdev.capabilities import missing_capabilities
from pyvirtfs.fsdev.local_attributes import LocalAttributes
from pyvirtfs.fsdev.local_create import LocalCreate
from pyvirtfs.fsdev.local_locks import LocalLocks
from pyvirtfs.fsdev.local_names import LocalNames
from pyvirtfs.fsdev.options import Option, OptionTable, OptionValue
from pyvirtfs.fsdev.registry import DriverType
from pyvirtfs.fsdev.security import MODELS

_LATER: Final = "is not supported yet"
_MAPPED_ONLY: Final = "it belongs to the mapped security models, which are not supported yet"

OPTIONS: Final = OptionTable(
    "fsdev driver 'local'",
    (
        Option(name="path", required=True, help="The folder to export"),
        Option(
            name="security_model",
            type="choice",
            required=True,
            choices=tuple(sorted(MODELS, reverse=True)),
            refused=dict.fromkeys(("mapped", "mapped-xattr", "mapped-file"), _LATER),
            help="What becomes of the guest's owners and modes",
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
            choices=("remap", "forbid"),
            refused={"warn": "would let two files have one identity; it is not supported"},
            help="Files of other devices below the export: give them numbers of their own, or refuse them",
        ),
    ),
    refused={"fmode": _MAPPED_ONLY, "dmode": _MAPPED_ONLY, "throttling.*": "throttling is not supported yet"},
)


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


class LocalDriver(LocalCreate, LocalNames, LocalAttributes, LocalLocks):
    """An export of a folder of the host.

    Not safe for use by several threads at once: give each session that runs in a thread of its own its own driver.

    Args:
        path: The folder; an existing one.
        security_model: ``passthrough`` or ``none``.
        readonly: Change nothing on the host.
        writeout: ``immediate``: start to write data to the disk with each write.
        multidevs: What becomes of objects on other devices than the root's: ``remap`` gives them qid paths of their
            own, ``forbid`` refuses them with ENODEV.
        max_descriptors: How many descriptors the guest may make this process hold, one for each object that it knows,
            each open file, each owner of locks on a file. None: what the soft limit RLIMIT_NOFILE allows now, but for a
            quarter (64 at least).

    Raises:
        ConfigError: An option is wrong, or this process cannot do what it says.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        security_model: str = "none",
        *,
        readonly: bool = False,
        writeout: str | None = None,
        multidevs: str = "remap",
        max_descriptors: int | None = None,
    ) -> None:
        OPTIONS.options["security_model"].parse(security_model)
        OPTIONS.options["multidevs"].parse(multidevs)
        if writeout is not None:
            OPTIONS.options["writeout"].parse(writeout)
        if max_descriptors is not None and max_descriptors < 1:
            raise ConfigError("max_descriptors", f"{max_descriptors} is not enough: the root needs one")
        model = MODELS[security_model]
        if not readonly and (missing := missing_capabilities(model.capabilities)):
            raise ConfigError(
                "security_model",
                f"{security_model!r} needs {', '.join(missing)}, which this process lacks: run it as root,"
                " or with readonly=on",
                ("none",),
            )
        root_fd = open_root(os.fspath(path))
        if not Path(f"/proc/self/fd/{root_fd}").exists():
            os.close(root_fd)
            raise ConfigError("path", "/proc is not mounted, and the driver needs it")
        try:
            super().__init__(
                root_fd,
                model,
                readonly=readonly,
                forbid_devices=multidevs == "forbid",
                write_back=writeout == "immediate",
                set_ids_survive=not missing_capabilities(("CAP_FSETID",)),
                max_descriptors=max_descriptors,
            )
        except OSError as error:
            raise ConfigError("path", f"{os.fspath(path)!r} cannot be exported: {error}") from None

    @classmethod
    def from_options(cls, values: Mapping[str, OptionValue]) -> LocalDriver:
        """Make one from the values of `OPTIONS`; raises ConfigError."""
        return cls(
            str(values["path"]),
            str(values["security_model"]),
            readonly=bool(values["readonly"]),
            writeout=None if values["writeout"] is None else str(values["writeout"]),
            multidevs=str(values["multidevs"]),
        )

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
        self._listings.close()
        self._table.close()


DRIVER: Final = DriverType("local", LocalDriver.from_options, OPTIONS, "A folder of this machine")
