"""The numbers of 9P: message types, flags, masks.

Public sources: diod's protocol.md (9P2000.L), section 5 of the Plan 9 manual (9P2000 and what the others kept of it),
"Plan 9 Remote Resource Protocol, Unix Extension" (9P2000.u), and the values that Linux on x86 gives to the flags that
travel as they are (open(2), fcntl(2), xattr(7), readdir(3)).
"""

from __future__ import annotations

from typing import Final

# --- message types; a reply is its request's type plus one ---

RLERROR: Final = 7
TSTATFS: Final = 8
RSTATFS: Final = 9
TLOPEN: Final = 12
RLOPEN: Final = 13
TLCREATE: Final = 14
RLCREATE: Final = 15
TSYMLINK: Final = 16
RSYMLINK: Final = 17
TMKNOD: Final = 18
RMKNOD: Final = 19
TRENAME: Final = 20
RRENAME: Final = 21
TREADLINK: Final = 22
RREADLINK: Final = 23
TGETATTR: Final = 24
RGETATTR: Final = 25
TSETATTR: Final = 26
RSETATTR: Final = 27
TXATTRWALK: Final = 30
RXATTRWALK: Final = 31
TXATTRCREATE: Final = 32
RXATTRCREATE: Final = 33
TREADDIR: Final = 40
RREADDIR: Final = 41
TFSYNC: Final = 50
RFSYNC: Final = 51
TLOCK: Final = 52
RLOCK: Final = 53
TGETLOCK: Final = 54
RGETLOCK: Final = 55
TLINK: Final = 70
RLINK: Final = 71
TMKDIR: Final = 72
RMKDIR: Final = 73
TRENAMEAT: Final = 74
RRENAMEAT: Final = 75
TUNLINKAT: Final = 76
RUNLINKAT: Final = 77
TVERSION: Final = 100
RVERSION: Final = 101
TAUTH: Final = 102
RAUTH: Final = 103
TATTACH: Final = 104
RATTACH: Final = 105
RERROR: Final = 107
TFLUSH: Final = 108
RFLUSH: Final = 109
TWALK: Final = 110
RWALK: Final = 111
TOPEN: Final = 112
ROPEN: Final = 113
TCREATE: Final = 114
RCREATE: Final = 115
TREAD: Final = 116
RREAD: Final = 117
TWRITE: Final = 118
RWRITE: Final = 119
TCLUNK: Final = 120
RCLUNK: Final = 121
TREMOVE: Final = 122
RREMOVE: Final = 123
TSTAT: Final = 124
RSTAT: Final = 125
TWSTAT: Final = 126
RWSTAT: Final = 127

# --- framing ---

HEADER_SIZE: Final = 7
"""Bytes of ``size[4] type[1] tag[2]``, which every message begins with."""
READ_HEADER_SIZE: Final = 11
"""Bytes of an Rread or Rreaddir before its data."""
WRITE_HEADER_SIZE: Final = 23
"""Bytes of a Twrite before its data."""
IO_HEADER_SIZE: Final = 24
"""What clients subtract from msize to get the largest payload of a Tread or Twrite (IOHDRSZ)."""
QID_SIZE: Final = 13
STAT_SIZE: Final = 47
"""What `size` of a stat says if its strings are empty."""
STAT_UNIX_SIZE: Final = 61
"""The same in 9P2000.u."""
DIRECTORY_ENTRY_SIZE: Final = 24
"""Bytes of an entry in an Rreaddir without its name: ``qid[13] offset[8] type[1] len[2]``."""
MIN_MSIZE: Final = 4096
"""The smallest msize that QEMU and Linux accept."""
MAX_WALK_NAMES: Final = 16
"""MAXWELEM: names in one Twalk."""

NOTAG: Final = 0xFFFF
"""The tag of a Tversion."""
NOFID: Final = 0xFFFFFFFF
"""No fid: the afid of a Tattach without authentication."""
NONUNAME: Final = 0xFFFFFFFF
"""No numeric user in a Tattach; "leave alone" as uid or gid in a Tsetattr."""

VERSION_9P2000: Final = b"9P2000"
VERSION_9P2000_U: Final = b"9P2000.u"
VERSION_9P2000_L: Final = b"9P2000.L"
VERSION_UNKNOWN: Final = b"unknown"
"""What an Rversion says when the server knows none of what the client asked for."""

# --- qid.type ---

QTDIR: Final = 0x80
QTAPPEND: Final = 0x40
QTEXCL: Final = 0x20
QTMOUNT: Final = 0x10
QTAUTH: Final = 0x08
QTTMP: Final = 0x04
QTSYMLINK: Final = 0x02
QTLINK: Final = 0x01
QTFILE: Final = 0x00

# --- stat.mode, and perm of Tcreate: what a file is; the lowest nine bits are rwxrwxrwx (stat(5)) ---

DMDIR: Final = 0x80000000
DMAPPEND: Final = 0x40000000
DMEXCL: Final = 0x20000000
DMMOUNT: Final = 0x10000000
DMAUTH: Final = 0x08000000
DMTMP: Final = 0x04000000
# of 9P2000.u
DMSYMLINK: Final = 0x02000000
DMLINK: Final = 0x01000000
"""A Tcreate that makes one more name for a fid's object."""
DMDEVICE: Final = 0x00800000
DMNAMEDPIPE: Final = 0x00200000
DMSOCKET: Final = 0x00100000
DMSETUID: Final = 0x00080000
DMSETGID: Final = 0x00040000
DMSETVTX: Final = 0x00010000

# --- mode of Topen and Tcreate (open(5)) ---

OREAD: Final = 0x00
OWRITE: Final = 0x01
ORDWR: Final = 0x02
OEXEC: Final = 0x03
OMODE: Final = 0x03
"""Masks the four above."""
OTRUNC: Final = 0x10
OCEXEC: Final = 0x20
"""Concerns the client's process only."""
ORCLOSE: Final = 0x40
"""Remove the file when the fid is clunked."""
# of 9P2000.u
OEXCL: Final = 0x04
OAPPEND: Final = 0x80

# --- flags of Tlopen and Tlcreate: those of open(2) on Linux/x86, whatever host this is ---

DOTL_ACCMODE: Final = 0o3
"""Masks the access mode: read-only, write-only, read and write, neither."""
DOTL_RDONLY: Final = 0o0
DOTL_WRONLY: Final = 0o1
DOTL_RDWR: Final = 0o2
DOTL_NOACCESS: Final = 0o3
DOTL_CREATE: Final = 0o100
DOTL_EXCL: Final = 0o200
DOTL_NOCTTY: Final = 0o400
DOTL_TRUNC: Final = 0o1000
DOTL_APPEND: Final = 0o2000
DOTL_NONBLOCK: Final = 0o4000
DOTL_DSYNC: Final = 0o10000
DOTL_FASYNC: Final = 0o20000
DOTL_DIRECT: Final = 0o40000
DOTL_LARGEFILE: Final = 0o100000
DOTL_DIRECTORY: Final = 0o200000
DOTL_NOFOLLOW: Final = 0o400000
DOTL_NOATIME: Final = 0o1000000
DOTL_CLOEXEC: Final = 0o2000000
DOTL_SYNC: Final = 0o4000000
"""Only the bit that O_SYNC has beyond O_DSYNC; a client that means O_SYNC sends both."""

UNLINKAT_REMOVEDIR: Final = 0x200
"""Tunlinkat flag: remove a folder (AT_REMOVEDIR)."""

# --- Tgetattr request_mask, Rgetattr valid ---

GETATTR_MODE: Final = 0x1
GETATTR_NLINK: Final = 0x2
GETATTR_UID: Final = 0x4
GETATTR_GID: Final = 0x8
GETATTR_RDEV: Final = 0x10
GETATTR_ATIME: Final = 0x20
GETATTR_MTIME: Final = 0x40
GETATTR_CTIME: Final = 0x80
GETATTR_INO: Final = 0x100
GETATTR_SIZE: Final = 0x200
GETATTR_BLOCKS: Final = 0x400
GETATTR_BASIC: Final = 0x7FF
"""All of the above: what stat(2) tells."""
GETATTR_BTIME: Final = 0x800
GETATTR_GEN: Final = 0x1000
GETATTR_DATA_VERSION: Final = 0x2000
GETATTR_ALL: Final = 0x3FFF

# --- Tsetattr valid ---

SETATTR_MODE: Final = 0x1
SETATTR_UID: Final = 0x2
SETATTR_GID: Final = 0x4
SETATTR_SIZE: Final = 0x8
SETATTR_ATIME: Final = 0x10
SETATTR_MTIME: Final = 0x20
SETATTR_CTIME: Final = 0x40
SETATTR_ATIME_SET: Final = 0x80
"""With SETATTR_ATIME: to the time in the message. Without: to the server's current time."""
SETATTR_MTIME_SET: Final = 0x100
"""As SETATTR_ATIME_SET, for the modification time."""

# --- locks ---

LOCK_TYPE_RDLCK: Final = 0
LOCK_TYPE_WRLCK: Final = 1
LOCK_TYPE_UNLCK: Final = 2

LOCK_FLAGS_BLOCK: Final = 1
LOCK_FLAGS_RECLAIM: Final = 2

LOCK_SUCCESS: Final = 0
LOCK_BLOCKED: Final = 1
LOCK_ERROR: Final = 2
LOCK_GRACE: Final = 3

# --- extended attributes ---

XATTR_CREATE: Final = 1
XATTR_REPLACE: Final = 2
XATTR_SIZE_MAX: Final = 65536
"""The largest value of an attribute that Linux takes, in bytes (xattr(7))."""

# --- the type in a directory entry: DT_* of readdir(3) ---

DT_UNKNOWN: Final = 0
DT_FIFO: Final = 1
DT_CHR: Final = 2
DT_DIR: Final = 4
DT_BLK: Final = 6
DT_REG: Final = 8
DT_LNK: Final = 10
DT_SOCK: Final = 12
