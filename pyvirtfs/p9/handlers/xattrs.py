"""Txattrwalk, Txattrcreate (protocol.md): fids that are extended attributes. Tread, Twrite and Tclunk do the rest."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any, Final

from pyvirtfs.p9 import constants as c
from pyvirtfs.p9.codec import encoder
from pyvirtfs.p9.fids import XATTR_WRITE, XattrWrite
from pyvirtfs.p9.names import check_xattr_name
from pyvirtfs.p9.operation import Operation

if TYPE_CHECKING:
    from pyvirtfs.p9.requests import Request
    from pyvirtfs.p9.session import Session

_rxattrwalk = encoder(c.RXATTRWALK)
_rxattrcreate = encoder(c.RXATTRCREATE)

Fields = tuple[Any, ...]


def start_xattrwalk(session: Session, request: Request, fields: Fields) -> Any:
    """Ask for an attribute or, with the empty name, for the names of all of them."""
    number, newfid, name = fields
    if name:
        check_xattr_name(name)
    fid = session.fids.find(number)
    session.fids.check_new(newfid)
    node = fid.require_node()
    request.fid = fid
    request.newfid = newfid
    driver = session.driver
    return driver.getxattr(node, name) if name else driver.listxattr(node)


def finish_xattrwalk(session: Session, request: Request, value: bytes) -> bytes:
    """Rxattrwalk: the value is a fid now, and stays what it was when it was asked for."""
    session.fids.add_xattr(request.newfid, value, request.fid.uid)
    return _rxattrwalk(request.tag, len(value))


def start_xattrcreate(session: Session, _request: Request, fields: Fields) -> None:
    """Turn a fid into an attribute to be written; the driver hears of it at its Tclunk."""
    number, name, size, flags = fields
    check_xattr_name(name)
    if flags & ~(c.XATTR_CREATE | c.XATTR_REPLACE):
        raise OSError(errno.EINVAL, f"xattr flags {flags:#x}")
    if size > c.XATTR_SIZE_MAX:
        raise OSError(errno.E2BIG, f"an attribute of {size} bytes")
    fid = session.fids.find(number, errno.EINVAL)
    fid.require_unopened()
    session.fids.charge_xattr(size)
    fid.xattr = XattrWrite(name, size, flags)
    fid.kind = XATTR_WRITE


def finish_xattrcreate(_session: Session, request: Request, _value: None) -> bytes:
    """Rxattrcreate."""
    return _rxattrcreate(request.tag)


OPERATIONS: Final = (
    Operation(c.TXATTRWALK, start_xattrwalk, finish_xattrwalk, makes_fid=True),
    Operation(c.TXATTRCREATE, start_xattrcreate, finish_xattrcreate),
)
