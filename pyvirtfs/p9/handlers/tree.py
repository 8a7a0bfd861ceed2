"""Tattach, Twalk, Tclunk, Tremove: which fids there are (attach(5), walk(5), clunk(5), remove(5))."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any, Final

from pyvirtfs.fsdev.completion import Completion
from pyvirtfs.fsdev.driver import QID_DIRECTORY, Qid, Walk
from pyvirtfs.p9 import constants as c
from pyvirtfs.p9.codec import encoder
from pyvirtfs.p9.fids import XATTR_WRITE, Fid, XattrWrite
from pyvirtfs.p9.names import check_names
from pyvirtfs.p9.operation import Operation

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyvirtfs.p9.requests import Request
    from pyvirtfs.p9.session import Session

_rattach = encoder(c.RATTACH)
_rwalk = encoder(c.RWALK)
_rclunk = encoder(c.RCLUNK)
_rremove = encoder(c.RREMOVE)

Fields = tuple[Any, ...]


# --- Tattach ---


def start_attach(session: Session, request: Request, fields: Fields) -> Any:
    """Give a fid to the root of the export. Whatever is wrong with the root, the guest sees EINVAL, as with QEMU."""
    number, afid, _uname, aname, uid = fields
    if afid != c.NOFID:
        raise OSError(errno.EINVAL, "there are no authentication fids")
    session.fids.check_new(number)
    request.fid = Fid(c.NOFID, None, uid, False)  # in no table: it says whose attach it is, as a walk's fid does
    request.newfid = number
    try:
        answer = session.driver.attach(aname, uid)
    except OSError as error:
        raise _rootless(error) from error
    return _told_as_einval(answer) if isinstance(answer, Completion) else answer


def finish_attach(session: Session, request: Request, value: tuple[Any, Qid]) -> bytes:
    """Rattach."""
    node, qid = value
    try:
        session.learn_block_size(node)
        reply = _rattach(request.tag, qid)
    except BaseException as error:
        session.fids.release(node)
        if isinstance(error, OSError):
            raise _rootless(error) from error
        raise
    session.table[request.newfid] = Fid(request.newfid, node, request.fid.uid, bool(qid[0] & QID_DIRECTORY))
    return reply


def discard_attach(session: Session, value: tuple[Any, Qid]) -> None:
    """Give the node back."""
    session.fids.release(value[0])


def _rootless(error: OSError) -> OSError:
    return OSError(errno.EINVAL, f"the root of the export: {error.strerror}")


def _told_as_einval(answer: Completion[Any]) -> Completion[Any]:
    """The same answer, its error as `_rootless` has it."""
    told: Completion[Any] = Completion(lambda _told: answer.cancel())

    def tell(answer: Completion[Any]) -> None:
        try:
            value = answer.result()
        except OSError as error:
            told.set_error(error if error.errno == errno.EINTR else _rootless(error))  # EINTR: it was cancelled
        except Exception as error:  # noqa: BLE001  # `told` has to be completed; the server names the driver
            told.set_error(error)  # type: ignore[arg-type]  # the driver broke its contract
        else:
            told.set_result(value)

    answer.on_done(tell)
    return told


# --- Twalk ---


def start_walk(session: Session, request: Request, fields: Fields) -> Any:
    """Resolve up to 16 names from a fid's object; the result becomes newfid, which may be the same number."""
    number, newfid, names = fields
    if len(names) > c.MAX_WALK_NAMES:
        raise OSError(errno.EINVAL, f"{len(names)} names in one walk")
    check_names(names)
    fid = session.table.get(number)
    if fid is None:
        fid = session.fids.find(number)
    if newfid == number:
        fid.require_unopened()
    else:
        session.fids.check_new(newfid)
    node = fid.node
    if node is None:
        node = fid.require_node()
    if 9 + c.QID_SIZE * len(names) > request.room:
        raise OSError(errno.EMSGSIZE, f"no room for {len(names)} qids")
    request.fid = fid
    request.newfid = newfid
    request.context = len(names)
    return session.driver.walk(node, names)


def finish_walk(session: Session, request: Request, walk: Walk[Any]) -> bytes:
    """Rwalk. A walk that ended early makes no fid and moves none."""
    qids, node = walk
    if len(qids) > request.context:
        discard_walk(session, walk)
        raise ValueError(f"{len(qids)} qids for {request.context} names")
    if node is not None:
        source = request.fid
        is_folder = bool(qids[-1][0] & QID_DIRECTORY) if qids else source.is_folder
        newfid = request.newfid
        if newfid != source.number:
            session.table[newfid] = Fid(newfid, node, source.uid, is_folder)
        elif source.retired:
            session.fids.release(node)
            raise OSError(errno.ENOENT, f"fid {newfid} was clunked meanwhile")
        else:
            session.fids.replace(source, Fid(newfid, node, source.uid, is_folder))
    return _rwalk(request.tag, qids)


def discard_walk(session: Session, walk: Walk[Any]) -> None:
    """Give the new node back."""
    if walk.node is not None:
        session.fids.release(walk.node)


# --- Tclunk, Tremove: the fid is gone, whatever else comes of them ---


def start_clunk(session: Session, request: Request, fields: Fields) -> Any:
    """Free a fid. This is where an attribute that was written with Txattrcreate and Twrite is set."""
    fid = session.table.get(fields[0])
    if fid is None:
        fid = session.fids.find(fields[0])
    if fid.kind == XATTR_WRITE:
        return _last_call(session, request, fid, _set_xattr)
    outcome = session.fids.remove(fid)
    if outcome is not None:
        if not isinstance(outcome, Completion):
            raise outcome
        request.fid = fid
    return outcome


def finish_clunk(_session: Session, request: Request, _value: None) -> bytes:
    """Rclunk."""
    return _rclunk(request.tag)


def start_remove(session: Session, request: Request, fields: Fields) -> Any:
    """Remove the name under which a fid's object was found, and free the fid."""
    fid = session.fids.find(fields[0], errno.EINVAL)
    return _last_call(session, request, fid, _remove)


def start_remove_readonly(session: Session, _request: Request, fields: Fields) -> None:
    """On a readonly export all that a Tremove does is to free the fid."""
    session.fids.drop(session.fids.find(fields[0], errno.EINVAL))
    raise OSError(errno.EROFS, "the export is readonly")


def finish_remove(_session: Session, request: Request, _value: None) -> bytes:
    """Rremove."""
    return _rremove(request.tag)


def _last_call(session: Session, request: Request, fid: Fid, call: Callable[[Session, Fid], Any]) -> Any:
    """Call the driver for the last time on behalf of a fid, and free its number whatever comes of that."""
    try:
        answer = call(session, fid)
    except BaseException:
        session.fids.drop(fid)
        raise
    if isinstance(answer, Completion):
        request.fid = fid  # which `Operation.removes` once it is kept
    else:
        session.fids.drop(fid)
    return answer


def _remove(session: Session, fid: Fid) -> Any:
    return session.driver.remove(fid.require_node())


def _set_xattr(session: Session, fid: Fid) -> Any:
    """Set an attribute, or remove it.

    A client removes one by announcing no bytes with XATTR_REPLACE (Linux has no other message for it); no bytes without
    that flag are an empty value, as setxattr(2) knows it too.
    """
    xattr: XattrWrite = fid.xattr
    if xattr.written != xattr.size:
        raise OSError(errno.EINVAL, f"{xattr.written} of {xattr.size} bytes of the attribute were written")
    if not xattr.size and xattr.flags & c.XATTR_REPLACE:
        return session.driver.removexattr(fid.node, xattr.name, fid.uid)
    return session.driver.setxattr(fid.node, xattr.name, bytes(xattr.value), xattr.flags, fid.uid)


OPERATIONS: Final = (
    Operation(c.TATTACH, start_attach, finish_attach, discard=discard_attach, makes_fid=True),
    Operation(c.TWALK, start_walk, finish_walk, discard=discard_walk, makes_fid=True),
    Operation(c.TCLUNK, start_clunk, finish_clunk, removes=True),
    Operation(c.TREMOVE, start_remove, finish_remove, removes=True),
)

READONLY_REMOVE: Final = Operation(c.TREMOVE, start_remove_readonly, finish_remove)
"""In place of Tremove where the export is readonly."""
