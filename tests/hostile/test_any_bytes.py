"""Whatever can be sent (H119): every type of message, every kind of body, and messages with bytes changed."""

from __future__ import annotations

import errno
import os
import random
import struct
from collections.abc import Callable
from typing import Any, TypeAlias

import pytest

from pyvirtfs.errors import MessageError
from pyvirtfs.p9 import constants as c
from pyvirtfs.p9 import frames
from pyvirtfs.p9.messages import MESSAGES
from tests.hostile.stack import NAMES, Place, Stack, message, raw, sizes, snapshot

Start: TypeAlias = Callable[..., Stack]

BODIES = [b"", b"\0", bytes(4), b"\xff" * 4, bytes(100), b"\xff" * 300, bytes(range(256)), b"\xff\xff" + b"x" * 9000]


def is_readable(data: bytes) -> bool:
    """Whether it is a request, by the declarations, which the device does not parse with."""
    try:
        frames.parse(data)
    except MessageError:
        return False
    return True


@pytest.mark.parametrize("block", range(0, 256, 64))
def test_h119_every_type_with_every_kind_of_body(start: Start, place: Place, block: int) -> None:
    """A reply, or a type that is none, is not known; a request that cannot be read has no answer."""
    stack = start(bus=False, messages=0)
    before = snapshot(place.export)
    for kind in range(block, block + 64):
        is_request = kind in MESSAGES and not kind & 1
        cases: list[tuple[bytes, int | None]] = [(body, None) for body in BODIES]
        if is_request or kind % 8 == 1:
            cases += [(body, size) for body in (b"", bytes(100)) for size in (0, 6, len(body) + 8, 0xFFFFFFFF)]
        for body, size in cases:
            data = raw(kind, body, size=size)
            reply = stack.send(data)
            if size is not None and size < 7:
                assert reply is None or not is_request
            elif is_request:
                assert (reply is not None) == is_readable(data), (kind, body[:8], size)
            elif reply is not None:
                assert reply.errno == errno.EOPNOTSUPP
            if reply is None or kind in {c.TVERSION, c.TCLUNK}:
                stack.remount()
    assert snapshot(place.export) == before


def mutated(data: bytes, dice: random.Random) -> bytes:
    """A message with a few things wrong."""
    changed = bytearray(data)
    for _ in range(dice.choice((1, 1, 2, 4))):
        at = dice.randrange(len(changed)) if changed else 0
        what = dice.randrange(8)
        if what < 3 and changed:
            changed[at] = dice.randrange(256)
        elif what == 3 and changed:
            changed[at] ^= 1 << dice.randrange(8)
        elif what == 4:
            changed[at:at] = dice.randbytes(dice.randrange(20))
        elif what == 5:
            del changed[at : at + dice.randrange(1, 9)]
        elif what == 6 and len(changed) >= at + 4:
            struct.pack_into("<I", changed, at, dice.choice((0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, len(changed))))
        elif what == 7 and len(changed) >= at + 8:
            struct.pack_into("<Q", changed, at, dice.choice((0, 1 << 63, (1 << 64) - 1, (1 << 63) - 1)))
    if dice.random() < 0.8 and len(changed) >= 4:  # else the size field alone would decide
        struct.pack_into("<I", changed, 0, len(changed))
    return bytes(changed)


FIDS = {"file": 1, "folder": 2, "link": 3, "opened": 4, "listing": 5}
GOOD: dict[str, dict[str, Any]] = {
    "Tclunk": {"fid": 3}, "Tremove": {"fid": 1}, "Tlopen": {"fid": 1, "flags": 2}, "Tlcreate": {"fid": 2},
     "Tread": {"fid": 4, "count": 8}, "Twrite": {"fid": 4, "data": b"data"}, "Treaddir": {"fid": 5},
     "Tfsync": {"fid": 4}, "Tlock": {"fid": 4}, "Tgetlock": {"fid": 4}, "Tsetattr": {"fid": 1, "valid": 1},
     "Txattrcreate": {"fid": 1}, "Txattrwalk": {"fid": 1, "newfid": 7}, "Tlink": {"dfid": 2, "fid": 1},
     "Treadlink": {"fid": 3}, "Trename": {"fid": 1, "dfid": 2}, "Trenameat": {"newdirfid": 2}, "Tsymlink": {"dfid": 2},
     "Tmknod": {"dfid": 2}, "Tmkdir": {"dfid": 2}, "Twalk": {"newfid": 6, "wnames": [b"folder", b"below"]},
}  # fmt: skip


def prepare(stack: Stack, place: Place) -> None:
    """The fids of `FIDS`, on the objects of a fresh `Place`, whatever has become of those."""
    place.export.chmod(0o755)
    for name in ("file", "folder", "link"):
        restore(place, name)
    names = {"file": b"file", "folder": b"folder", "link": b"link", "opened": b"file", "listing": None}
    walks = [
        message("Twalk", newfid=fid, wnames=[] if names[what] is None else [names[what]]) for what, fid in FIDS.items()
    ]
    opens = [message("Tlopen", fid=4, flags=c.DOTL_RDWR), message("Tlopen", fid=5)]
    assert not any(reply.errno for reply in stack.bulk([*walks, *opens]))


@pytest.mark.parametrize("seed", range(4))
@sizes(1200, 25_000)
def test_h119_messages_with_bytes_changed(start: Start, place: Place, count: int, seed: int) -> None:
    """Four times 1200 (25,000, so 100,000 in all), each a good one that was changed."""
    dice = random.Random(seed)
    stack = start(bus=False, messages=0)
    prepare(stack, place)
    answered = broken = 0
    for turn in range(count):
        name = dice.choice(NAMES)
        data = mutated(message(name, dice.randrange(4), **GOOD.get(name, {})), dice)
        if stack.send(data, dice.choice((4096, 4096, 4096, 160, 24, 11))) is None:
            broken += 1
        else:
            answered += 1
            if turn % 50:
                continue
        stack.remount()
        prepare(stack, place)
    place.export.chmod(0o755)
    assert answered > count // 4
    assert broken > count // 20


def restore(place: Place, name: str) -> None:
    """Put one object of the export back to what it was."""
    path = place.export / name
    if path.is_dir() and not path.is_symlink():
        path.chmod(0o755)
        if name == "folder" and (path / "below").is_file():
            return
        path.rename(place.export / f"old-{len(os.listdir(place.export))}-{name}")
    else:
        path.unlink(missing_ok=True)
    if name == "file":
        path.write_bytes(b"Hi Guest")
    elif name == "folder":
        path.mkdir()
        (path / "below").write_bytes(b"deep")
    else:
        path.symlink_to("../sentinel/secret")
