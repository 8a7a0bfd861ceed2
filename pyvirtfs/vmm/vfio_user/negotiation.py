"""What a vfio-user client and server agree on when they meet (VFIO_USER_VERSION)."""

from __future__ import annotations

import errno
import json
from typing import Any, Final, NamedTuple, NoReturn

from pyvirtfs.vmm.vfio_user.messages import COMMANDS, MAX_TRANSFER, VERSION

MAJOR: Final = 0
MINOR: Final = 1
MAX_FDS: Final = 16
"""Descriptors that one message may bring."""
_MOST_FDS: Final = 1024
_LAYOUT: Final = COMMANDS[VERSION].request_layout


class Terms(NamedTuple):
    """What was agreed on."""

    minor: int
    max_transfer: int
    """Bytes that one DMA_READ or DMA_WRITE may move."""
    write_multiple: bool
    """Whether REGION_WRITE_MULTI may come."""


def _refuse(problem: str) -> NoReturn:
    raise OSError(errno.EINVAL, problem)


def negotiate(body: bytes) -> tuple[Terms, bytes]:
    """Read a client's VERSION.

    Args:
        body: Of the message.

    Returns:
        The terms, and the body of the reply.

    Raises:
        OSError: EINVAL: another major version, or capabilities that are none.
    """
    if len(body) < _LAYOUT.size:
        _refuse("a VERSION without a version")
    major, minor = _LAYOUT.unpack_from(body)
    if major != MAJOR:
        _refuse(f"version {major}.{minor}, and {MAJOR}.{MINOR} is spoken here")
    capabilities = _capabilities(body[_LAYOUT.size :])
    transfer = _number(capabilities, "max_data_xfer_size", MAX_TRANSFER)
    if transfer < 1:
        _refuse(f"max_data_xfer_size is {transfer}")
    if not 0 <= (fds := _number(capabilities, "max_msg_fds", 1)) <= _MOST_FDS:
        _refuse(f"max_msg_fds is {fds}")
    migration = capabilities.get("migration", {})
    if not isinstance(migration, dict):
        _refuse("migration is no object")
    page = _number(migration, "pgsize", 4096)
    if page < 1 or page & (page - 1):
        _refuse(f"migration.pgsize is {page}")
    _number(capabilities, "pgsizes", 4096)
    _number(capabilities, "max_dma_maps", 65535)
    multiple = capabilities.get("write_multiple", False)
    if not isinstance(multiple, bool):
        _refuse("write_multiple is neither true nor false")
    terms = Terms(min(minor, MINOR), min(transfer, MAX_TRANSFER), multiple)
    offer: dict[str, Any] = {"max_msg_fds": MAX_FDS, "max_data_xfer_size": MAX_TRANSFER}
    if multiple:
        offer["write_multiple"] = True
    text = json.dumps({"capabilities": offer}, separators=(",", ":"))
    return terms, _LAYOUT.pack(MAJOR, terms.minor) + text.encode() + b"\0"


def _capabilities(data: bytes) -> dict[str, Any]:
    """The capabilities in the JSON behind a version; none if there is no JSON."""
    if not data:
        return {}
    if data[-1]:
        _refuse("the capabilities do not end in a NUL")
    try:
        document = json.loads(data[:-1] or b"{}")
    except (ValueError, RecursionError):
        _refuse("the capabilities are no JSON")
    if not isinstance(document, dict):
        _refuse("the capabilities are no JSON object")
    capabilities = document.get("capabilities", {})
    if not isinstance(capabilities, dict):
        _refuse("capabilities is no object")
    return capabilities


def _number(where: dict[str, Any], key: str, default: int) -> int:
    value = where.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int):
        _refuse(f"{key} is no number")
    return value
