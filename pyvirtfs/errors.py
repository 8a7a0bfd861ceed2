"""Every exception class of pyvirtfs, sorted by whose fault it is.

Three families, as in h11:

* `ConfigError`: the person who set the device up is wrong. One line that names the option, what it got, what it may be.
* `GuestError`: the guest is wrong. It never escapes from a device's entry points: the device sets
  DEVICE_NEEDS_RESET (virtio 1.3, 2.1.2), counts the error and stays quiet until it is reset.
* A host error inside a request is no class of its own: it is an `OSError`, and its errno goes into that request's
  reply.

`DeviceError` is the view from the other side of the bus: the simulated guest raises it when a device misbehaves.
"""

from __future__ import annotations

from collections.abc import Iterable


class PyvirtfsError(Exception):
    """The root of all exceptions that pyvirtfs defines."""


class ConfigError(PyvirtfsError, ValueError):
    """The person who set the device up is wrong.

    Args:
        option: The option at fault as that person wrote it, for example ``security_model``.
        problem: What is wrong with it, including the value it got.
        choices: What it may be, if that can be listed.
    """

    def __init__(self, option: str, problem: str, choices: Iterable[str] = ()) -> None:
        self.option = option
        self.problem = problem
        self.choices = tuple(choices)
        hint = f" (choose from {', '.join(self.choices)})" if self.choices else ""
        super().__init__(f"{option}: {problem}{hint}")


class GuestError(PyvirtfsError):
    """The guest is wrong in a way that has no answer on the wire."""


class MemoryAccessError(GuestError):
    """A guest-physical range is not (wholly) RAM.

    Args:
        address: First byte of the range, a guest-physical address.
        nbytes: Length of the range in bytes.
    """

    def __init__(self, address: int, nbytes: int) -> None:
        self.address = address
        self.nbytes = nbytes
        super().__init__(f"{nbytes} bytes at guest address {address:#x} are not RAM")


class QueueError(GuestError):
    """A virtqueue or a descriptor chain is malformed (virtio 1.3, 2.7)."""


class MessageError(GuestError):
    """A 9P message is malformed, or its reply cannot fit where the guest wants it."""


class DeviceError(PyvirtfsError):
    """Seen by the simulated guest: the device broke a rule, or needs a reset."""
