"""A client of 9P2000 or 9P2000.u that says what it likes."""

from __future__ import annotations

from typing import Any, Final

import construct

from pyvirtfs.guest import Request
from pyvirtfs.p9 import constants as c
from pyvirtfs.p9 import frames
from pyvirtfs.p9.messages import PLAIN, STAT, STAT_UNIX, UNIX, Vocabulary
from tests.hostile.stack import ROOT, UID, RefusedError, Reply, Stack, raw

DIALECTS: Final = {"u": UNIX, "plain": PLAIN}
_ONES: Final = 0xFFFFFFFF

NOTHING: Final[dict[str, Any]] = {
    "nstat": 0, "size": 0, "type": 0xFFFF, "dev": _ONES, "qid": (0xFF, _ONES, 2**64 - 1), "mode": _ONES,
    "atime": _ONES, "mtime": _ONES, "length": 2**64 - 1, "name": b"", "uid": b"", "gid": b"", "muid": b"",
}  # fmt: skip
"""The stat of a Twstat that changes nothing."""
_NOTHING_UNIX: Final[dict[str, Any]] = {"extension": b"", "n_uid": _ONES, "n_gid": _ONES, "n_muid": _ONES}

USUAL: Final[dict[str, dict[str, Any]]] = {
    "Tversion": {"msize": 131072, "version": b"9P2000.u"},
    "Tauth": {"afid": 900, "uname": b"", "aname": b"", "n_uname": UID},
    "Tattach": {"fid": 901, "afid": c.NOFID, "uname": b"", "aname": b"", "n_uname": UID},
    "Tflush": {"oldtag": 77},
    "Twalk": {"fid": ROOT, "newfid": 902, "wnames": ()},
    "Topen": {"fid": ROOT, "mode": c.OREAD},
    "Tcreate": {"fid": ROOT, "name": b"new", "perm": 0o644, "mode": 2, "extension": b""},
    "Tread": {"fid": ROOT, "offset": 0, "count": 4000},
    "Twrite": {"fid": ROOT, "offset": 0, "data": b""},
    "Tclunk": {"fid": ROOT},
    "Tremove": {"fid": ROOT},
    "Tstat": {"fid": ROOT},
    "Twstat": {"fid": ROOT, **NOTHING, **_NOTHING_UNIX},
}
"""What a request says unless a test says otherwise; what a dialect does not have is left out."""


class Older:
    """A client of an older dialect, on the device of a stack; it has begun a session and attached `ROOT`.

    Args:
        stack: The device, and its guest.
        vocabulary: The dialect.
    """

    def __init__(self, stack: Stack, vocabulary: Vocabulary) -> None:
        self.stack = stack
        self.vocabulary = vocabulary
        self.unix = vocabulary is UNIX
        version = stack.do("Tversion", tag=c.NOTAG, version=vocabulary.version)["version"]
        assert version == vocabulary.version
        self.do("Tattach", fid=ROOT)

    def message(self, name: str, tag: int = 3, /, **fields: Any) -> bytes:
        """A request, with its usual fields where none are given."""
        whole = {**USUAL[name], **fields}
        if name == "Twrite":
            whole.setdefault("count", len(whole["data"]))
        known = self.vocabulary.by_name[name].fields
        return frames.build(
            name, tag, {key: value for key, value in whole.items() if key in known}, vocabulary=self.vocabulary
        )

    def ask(self, name: str, /, room: int = 8192, tag: int = 3, **fields: Any) -> Reply:
        """A request that has to be answered, somehow."""
        found = self.stack.send(self.message(name, tag, **fields), room)
        assert found is not None, f"the device needs a reset after a {name}"
        return found

    def errno(self, name: str, /, room: int = 8192, **fields: Any) -> int:
        """A request, and the error that it is answered with; 0 for none."""
        return self.ask(name, room, **fields).errno

    def do(self, name: str, /, room: int = 8192, **fields: Any) -> dict[str, Any]:
        """A request that has to work; the fields of its reply. Raises RefusedError if it does not."""
        found = self.ask(name, room, **fields)
        if found.errno:
            raise RefusedError(name, found.errno)
        return frames.parse(raw(found.kind, found.body), vocabulary=self.vocabulary).fields

    def start(self, name: str, /, room: int = 8192, tag: int = 3, **fields: Any) -> Request:
        """A request whose reply nobody waits for."""
        return self.stack.channel.submit(self.message(name, tag, **fields), room)

    def fid(self, *names: bytes, base: int = ROOT) -> int:
        """A new fid for what names lead to."""
        found = self.stack.new()
        assert len(self.do("Twalk", fid=base, newfid=found, wnames=names)["wqids"]) == len(names)
        return found

    def opened(self, *names: bytes, mode: int = c.OREAD) -> int:
        """A new fid, open."""
        found = self.fid(*names)
        self.do("Topen", fid=found, mode=mode)
        return found

    def clunk(self, *fids: int) -> None:
        """Give fids up."""
        for fid in fids:
            self.do("Tclunk", fid=fid)

    def stat(self, *names: bytes) -> dict[str, Any]:
        """What a Tstat tells."""
        fid = self.fid(*names)
        found = self.do("Tstat", fid=fid)
        self.clunk(fid)
        return found

    def listing(self, fid: int, count: int = 4000) -> dict[bytes, Any]:
        """The stats in an open folder, by name."""
        data = b""
        while part := self.do("Tread", fid=fid, offset=len(data), count=count)["data"]:
            data += part
        found = construct.GreedyRange(STAT_UNIX if self.unix else STAT).parse(data) if data else []
        assert len({each.name for each in found}) == len(found)
        return {each.name: each for each in found}
