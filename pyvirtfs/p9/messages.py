"""Every message of 9P2000.L, 9P2000.u and 9P2000, declared once.

These declarations are what to read to know the wire format; everything else is made from them. The device's codec
(`pyvirtfs.p9.codec`) is lowered from them to `struct` plans, the simulated guest packs and parses through them as they
are (`pyvirtfs.p9.frames`), the printer and the round-trip tests iterate them.

All integers are little-endian. A message is ``size[4] type[1] tag[2] body``; `size` counts itself. Public sources:
diod's protocol.md for the messages of 9P2000.L, section 5 of the Plan 9 manual for 9P2000 and what the others kept of
it, "Plan 9 Remote Resource Protocol, Unix Extension" for 9P2000.u.

A message that differs by dialect is declared once for each form. `PLAIN`, `UNIX` and `LINUX` are what one dialect has;
`MESSAGES`, `BY_NAME` and `REQUESTS` are those of 9P2000.L.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple, TypeAlias

from construct import (
    Bytes,
    GreedyBytes,
    Int8ul,
    Int16ul,
    Int32ul,
    Int64sl,
    Int64ul,
    Prefixed,
    PrefixedArray,
    Struct,
    this,
)

from pyvirtfs.p9 import constants as c

Declaration: TypeAlias = Any
"""A construct object; construct carries no types."""

# --- what bodies are made of ---

STRING: Final[Declaration] = Prefixed(Int16ul, GreedyBytes)
"""``s[2+n]``: a 16-bit length and that many bytes: UTF-8 by convention, any bytes in practice, no terminator."""

QID: Final[Declaration] = Struct("type" / Int8ul, "version" / Int32ul, "path" / Int64ul)
"""What identifies an object (intro(5)); 13 bytes."""

STRINGS: Final[Declaration] = PrefixedArray(Int16ul, STRING)
QIDS: Final[Declaration] = PrefixedArray(Int16ul, QID)

SECONDS: Final[Declaration] = Int64sl
"""Since 1970, signed: clients send and expect a time before that in two's complement."""

COUNTED_DATA: Final[Declaration] = Bytes(this.count)
"""The payload at the end of a message; the field `count` before it is its length in bytes."""

HEADER: Final[Declaration] = Struct("size" / Int32ul, "type" / Int8ul, "tag" / Int16ul)
"""How every message begins; 7 bytes."""

DIRECTORY_ENTRY: Final[Declaration] = Struct(
    "qid" / QID,
    "offset" / Int64ul,  # where a listing goes on behind this entry
    "type" / Int8ul,  # DT_*
    "name" / STRING,
)
"""One of the entries that the data of an Rreaddir consists of."""

STAT: Final[Declaration] = Struct(
    "size" / Int16ul,  # bytes behind this field
    "type" / Int16ul,  # this and dev: of the client's kernel
    "dev" / Int32ul,
    "qid" / QID,
    "mode" / Int32ul,  # DM* and permission bits
    "atime" / Int32ul,  # seconds since 1970, like mtime
    "mtime" / Int32ul,
    "length" / Int64ul,
    "name" / STRING,
    "uid" / STRING,
    "gid" / STRING,
    "muid" / STRING,  # who changed it last
)
"""What stat(5) tells of a file; the data of an Rread of a folder consists of these (read(5))."""

STAT_UNIX: Final[Declaration] = Struct(
    *STAT.subcons,
    "extension" / STRING,  # a symbolic link's target, a device's numbers
    "n_uid" / Int32ul,
    "n_gid" / Int32ul,
    "n_muid" / Int32ul,
)
"""The same in 9P2000.u."""


class Message(NamedTuple):
    """One message type."""

    name: str
    """As the manuals write it, for example ``Tgetattr``."""
    type: int
    """The number on the wire."""
    dialects: str
    """Where it exists in this form: any of ``.`` (plain 9P2000), ``u`` (9P2000.u) and ``L`` (9P2000.L)."""
    body: Declaration
    """A construct Struct: everything behind the header."""

    @property
    def identifier(self) -> str:
        """A name that no other form of the same message has: ``Tattach``, ``Tattach_plain``."""
        return self.name + {PLAIN_ONLY: "_plain", UNIX_ONLY: "_unix"}.get(self.dialects, "")

    @property
    def fields(self) -> tuple[str, ...]:
        """The names of the body's fields, in wire order, with the payload (`data`) if there is one."""
        return tuple(subcon.name for subcon in self.body.subcons)

    @property
    def is_request(self) -> bool:
        """Whether clients send it: requests have even types, replies odd ones (Rlerror, 7, answers any request)."""
        return self.type % 2 == 0

    @property
    def has_payload(self) -> bool:
        """Whether it ends in bulk data, which the device moves apart from the message: Twrite, Rread, Rreaddir."""
        return bool(self.body.subcons) and self.body.subcons[-1].subcon is COUNTED_DATA


ANY: Final = ".uL"
PLAIN_ONLY: Final = "."
UNIX_ONLY: Final = "u"
LINUX_ONLY: Final = "L"
OLDER: Final = ".u"
NUMERIC: Final = "uL"  # the dialects with numeric user ids

DECLARATIONS: Final[tuple[Message, ...]] = (
    Message("Rlerror", c.RLERROR, LINUX_ONLY, Struct("ecode" / Int32ul)),
    Message("Rerror", c.RERROR, PLAIN_ONLY, Struct("ename" / STRING)),
    Message("Rerror", c.RERROR, UNIX_ONLY, Struct("ename" / STRING, "errno" / Int32ul)),
    # --- the session ---
    Message("Tversion", c.TVERSION, ANY, Struct("msize" / Int32ul, "version" / STRING)),
    Message("Rversion", c.RVERSION, ANY, Struct("msize" / Int32ul, "version" / STRING)),
    Message("Tauth", c.TAUTH, PLAIN_ONLY, Struct("afid" / Int32ul, "uname" / STRING, "aname" / STRING)),
    Message(
        "Tauth",
        c.TAUTH,
        NUMERIC,
        Struct("afid" / Int32ul, "uname" / STRING, "aname" / STRING, "n_uname" / Int32ul),
    ),
    Message("Rauth", c.RAUTH, ANY, Struct("aqid" / QID)),
    Message(
        "Tattach",
        c.TATTACH,
        PLAIN_ONLY,
        Struct("fid" / Int32ul, "afid" / Int32ul, "uname" / STRING, "aname" / STRING),
    ),
    Message(
        "Tattach",
        c.TATTACH,
        NUMERIC,
        Struct("fid" / Int32ul, "afid" / Int32ul, "uname" / STRING, "aname" / STRING, "n_uname" / Int32ul),
    ),
    Message("Rattach", c.RATTACH, ANY, Struct("qid" / QID)),
    Message("Tflush", c.TFLUSH, ANY, Struct("oldtag" / Int16ul)),
    Message("Rflush", c.RFLUSH, ANY, Struct()),
    # --- fids ---
    Message("Twalk", c.TWALK, ANY, Struct("fid" / Int32ul, "newfid" / Int32ul, "wnames" / STRINGS)),
    Message("Rwalk", c.RWALK, ANY, Struct("wqids" / QIDS)),
    Message("Tclunk", c.TCLUNK, ANY, Struct("fid" / Int32ul)),
    Message("Rclunk", c.RCLUNK, ANY, Struct()),
    Message("Tremove", c.TREMOVE, ANY, Struct("fid" / Int32ul)),
    Message("Rremove", c.RREMOVE, ANY, Struct()),
    # --- open files ---
    Message("Topen", c.TOPEN, OLDER, Struct("fid" / Int32ul, "mode" / Int8ul)),
    Message("Ropen", c.ROPEN, OLDER, Struct("qid" / QID, "iounit" / Int32ul)),
    Message(
        "Tcreate",
        c.TCREATE,
        PLAIN_ONLY,
        Struct("fid" / Int32ul, "name" / STRING, "perm" / Int32ul, "mode" / Int8ul),
    ),
    Message(
        "Tcreate",
        c.TCREATE,
        UNIX_ONLY,
        Struct("fid" / Int32ul, "name" / STRING, "perm" / Int32ul, "mode" / Int8ul, "extension" / STRING),
    ),
    Message("Rcreate", c.RCREATE, OLDER, Struct("qid" / QID, "iounit" / Int32ul)),
    Message("Tlopen", c.TLOPEN, LINUX_ONLY, Struct("fid" / Int32ul, "flags" / Int32ul)),
    Message("Rlopen", c.RLOPEN, LINUX_ONLY, Struct("qid" / QID, "iounit" / Int32ul)),
    Message(
        "Tlcreate",
        c.TLCREATE,
        LINUX_ONLY,
        Struct("fid" / Int32ul, "name" / STRING, "flags" / Int32ul, "mode" / Int32ul, "gid" / Int32ul),
    ),
    Message("Rlcreate", c.RLCREATE, LINUX_ONLY, Struct("qid" / QID, "iounit" / Int32ul)),
    Message("Tread", c.TREAD, ANY, Struct("fid" / Int32ul, "offset" / Int64ul, "count" / Int32ul)),
    Message("Rread", c.RREAD, ANY, Struct("count" / Int32ul, "data" / COUNTED_DATA)),
    Message(
        "Twrite",
        c.TWRITE,
        ANY,
        Struct("fid" / Int32ul, "offset" / Int64ul, "count" / Int32ul, "data" / COUNTED_DATA),
    ),
    Message("Rwrite", c.RWRITE, ANY, Struct("count" / Int32ul)),
    Message("Treaddir", c.TREADDIR, LINUX_ONLY, Struct("fid" / Int32ul, "offset" / Int64ul, "count" / Int32ul)),
    Message("Rreaddir", c.RREADDIR, LINUX_ONLY, Struct("count" / Int32ul, "data" / COUNTED_DATA)),
    Message("Tfsync", c.TFSYNC, LINUX_ONLY, Struct("fid" / Int32ul, "datasync" / Int32ul)),
    Message("Rfsync", c.RFSYNC, LINUX_ONLY, Struct()),
    # --- locks ---
    Message(
        "Tlock",
        c.TLOCK,
        LINUX_ONLY,
        Struct(
            "fid" / Int32ul,
            "type" / Int8ul,
            "flags" / Int32ul,
            "start" / Int64ul,
            "length" / Int64ul,  # 0: to the end of the file
            "proc_id" / Int32ul,
            "client_id" / STRING,
        ),
    ),
    Message("Rlock", c.RLOCK, LINUX_ONLY, Struct("status" / Int8ul)),
    Message(
        "Tgetlock",
        c.TGETLOCK,
        LINUX_ONLY,
        Struct(
            "fid" / Int32ul,
            "type" / Int8ul,
            "start" / Int64ul,
            "length" / Int64ul,
            "proc_id" / Int32ul,
            "client_id" / STRING,
        ),
    ),
    Message(
        "Rgetlock",
        c.RGETLOCK,
        LINUX_ONLY,
        Struct(
            "type" / Int8ul,
            "start" / Int64ul,
            "length" / Int64ul,
            "proc_id" / Int32ul,
            "client_id" / STRING,
        ),
    ),
    # --- attributes; nstat is the size of what follows it, with the size field in it ---
    Message("Tstat", c.TSTAT, OLDER, Struct("fid" / Int32ul)),
    Message("Rstat", c.RSTAT, PLAIN_ONLY, Struct("nstat" / Int16ul, *STAT.subcons)),
    Message("Rstat", c.RSTAT, UNIX_ONLY, Struct("nstat" / Int16ul, *STAT_UNIX.subcons)),
    Message("Twstat", c.TWSTAT, PLAIN_ONLY, Struct("fid" / Int32ul, "nstat" / Int16ul, *STAT.subcons)),
    Message("Twstat", c.TWSTAT, UNIX_ONLY, Struct("fid" / Int32ul, "nstat" / Int16ul, *STAT_UNIX.subcons)),
    Message("Rwstat", c.RWSTAT, OLDER, Struct()),
    Message("Tgetattr", c.TGETATTR, LINUX_ONLY, Struct("fid" / Int32ul, "request_mask" / Int64ul)),
    Message(
        "Rgetattr",
        c.RGETATTR,
        LINUX_ONLY,
        Struct(
            "valid" / Int64ul,
            "qid" / QID,
            "mode" / Int32ul,
            "uid" / Int32ul,
            "gid" / Int32ul,
            "nlink" / Int64ul,
            "rdev" / Int64ul,
            "size" / Int64ul,
            "blksize" / Int64ul,
            "blocks" / Int64ul,  # of 512 bytes
            "atime_sec" / SECONDS,
            "atime_nsec" / Int64ul,
            "mtime_sec" / SECONDS,
            "mtime_nsec" / Int64ul,
            "ctime_sec" / SECONDS,
            "ctime_nsec" / Int64ul,
            "btime_sec" / SECONDS,
            "btime_nsec" / Int64ul,
            "gen" / Int64ul,
            "data_version" / Int64ul,
        ),
    ),
    Message(
        "Tsetattr",
        c.TSETATTR,
        LINUX_ONLY,
        Struct(
            "fid" / Int32ul,
            "valid" / Int32ul,
            "mode" / Int32ul,
            "uid" / Int32ul,
            "gid" / Int32ul,
            "size" / Int64ul,
            "atime_sec" / SECONDS,
            "atime_nsec" / Int64ul,
            "mtime_sec" / SECONDS,
            "mtime_nsec" / Int64ul,
        ),
    ),
    Message("Rsetattr", c.RSETATTR, LINUX_ONLY, Struct()),
    Message("Tstatfs", c.TSTATFS, LINUX_ONLY, Struct("fid" / Int32ul)),
    Message(
        "Rstatfs",
        c.RSTATFS,
        LINUX_ONLY,
        Struct(
            "type" / Int32ul,
            "bsize" / Int32ul,
            "blocks" / Int64ul,
            "bfree" / Int64ul,
            "bavail" / Int64ul,
            "files" / Int64ul,
            "ffree" / Int64ul,
            "fsid" / Int64ul,
            "namelen" / Int32ul,
        ),
    ),
    Message("Txattrwalk", c.TXATTRWALK, LINUX_ONLY, Struct("fid" / Int32ul, "newfid" / Int32ul, "name" / STRING)),
    Message("Rxattrwalk", c.RXATTRWALK, LINUX_ONLY, Struct("size" / Int64ul)),
    Message(
        "Txattrcreate",
        c.TXATTRCREATE,
        LINUX_ONLY,
        Struct("fid" / Int32ul, "name" / STRING, "attr_size" / Int64ul, "flags" / Int32ul),
    ),
    Message("Rxattrcreate", c.RXATTRCREATE, LINUX_ONLY, Struct()),
    # --- names ---
    Message(
        "Tsymlink",
        c.TSYMLINK,
        LINUX_ONLY,
        Struct("dfid" / Int32ul, "name" / STRING, "symtgt" / STRING, "gid" / Int32ul),
    ),
    Message("Rsymlink", c.RSYMLINK, LINUX_ONLY, Struct("qid" / QID)),
    Message(
        "Tmknod",
        c.TMKNOD,
        LINUX_ONLY,
        Struct(
            "dfid" / Int32ul,
            "name" / STRING,
            "mode" / Int32ul,
            "major" / Int32ul,
            "minor" / Int32ul,
            "gid" / Int32ul,
        ),
    ),
    Message("Rmknod", c.RMKNOD, LINUX_ONLY, Struct("qid" / QID)),
    Message(
        "Tmkdir", c.TMKDIR, LINUX_ONLY, Struct("dfid" / Int32ul, "name" / STRING, "mode" / Int32ul, "gid" / Int32ul)
    ),
    Message("Rmkdir", c.RMKDIR, LINUX_ONLY, Struct("qid" / QID)),
    Message("Tlink", c.TLINK, LINUX_ONLY, Struct("dfid" / Int32ul, "fid" / Int32ul, "name" / STRING)),
    Message("Rlink", c.RLINK, LINUX_ONLY, Struct()),
    Message("Treadlink", c.TREADLINK, LINUX_ONLY, Struct("fid" / Int32ul)),
    Message("Rreadlink", c.RREADLINK, LINUX_ONLY, Struct("target" / STRING)),
    Message("Trename", c.TRENAME, LINUX_ONLY, Struct("fid" / Int32ul, "dfid" / Int32ul, "name" / STRING)),
    Message("Rrename", c.RRENAME, LINUX_ONLY, Struct()),
    Message(
        "Trenameat",
        c.TRENAMEAT,
        LINUX_ONLY,
        Struct("olddirfid" / Int32ul, "oldname" / STRING, "newdirfid" / Int32ul, "newname" / STRING),
    ),
    Message("Rrenameat", c.RRENAMEAT, LINUX_ONLY, Struct()),
    Message("Tunlinkat", c.TUNLINKAT, LINUX_ONLY, Struct("dirfid" / Int32ul, "name" / STRING, "flags" / Int32ul)),
    Message("Runlinkat", c.RUNLINKAT, LINUX_ONLY, Struct()),
)
"""All messages of all dialects, each in all of its forms."""


class Vocabulary:
    """The messages of one dialect.

    Args:
        version: The dialect, as Tversion names it.
        letter: The same as `Message.dialects` has it.

    Attributes:
        version: As above.
        messages: Its messages, in the order of their declaration.
        by_type: The same by number.
        by_name: The same by name.
        requests: Those that clients send.
        stat: How it tells of a file; None: not by a stat.
    """

    __slots__ = ("by_name", "by_type", "messages", "requests", "stat", "version")

    def __init__(self, version: bytes, letter: str, stat: Declaration = None) -> None:
        self.version = version
        self.messages = tuple(message for message in DECLARATIONS if letter in message.dialects)
        self.by_type = {message.type: message for message in self.messages}
        self.by_name = {message.name: message for message in self.messages}
        self.requests = tuple(message for message in self.messages if message.is_request)
        self.stat = stat


PLAIN: Final = Vocabulary(c.VERSION_9P2000, PLAIN_ONLY, STAT)
"""9P2000: 13 requests, their replies, and Rerror."""
UNIX: Final = Vocabulary(c.VERSION_9P2000_U, UNIX_ONLY, STAT_UNIX)
"""9P2000.u: the same, most of them with more fields."""
LINUX: Final = Vocabulary(c.VERSION_9P2000_L, LINUX_ONLY)
"""9P2000.L: 28 requests, their replies, and Rlerror."""

MESSAGES: Final[dict[int, Message]] = LINUX.by_type
BY_NAME: Final[dict[str, Message]] = LINUX.by_name
REQUESTS: Final[tuple[Message, ...]] = LINUX.requests
