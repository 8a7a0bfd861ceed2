"""Guests that hold more objects and files than there are descriptors (H042, H082)."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import pytest

from pyvirtfs.errors import ConfigError
from pyvirtfs.fsdev.closing import LeastRecentlyOpened
from pyvirtfs.fsdev.local import LocalDriver
from pyvirtfs.p9 import constants as c
from pyvirtfs.testing import DelayedDriver, open_descriptors
from tests.hostile.stack import MODEL, Place, Stack, message, reply_of, sizes

Start: TypeAlias = Callable[..., Stack]

BUDGET = 40
MANY = 120
MODELS = [MODEL, "mapped-xattr", "mapped-file"]


@pytest.fixture(params=["handles", "names"])
def opened_by(request: pytest.FixtureRequest, place: Place, monkeypatch: pytest.MonkeyPatch) -> str:
    """How objects are opened again."""
    how: str = request.param
    if how == "names":
        monkeypatch.setattr(LeastRecentlyOpened, "_try_handles", lambda _self: False)
    else:
        driver = place.driver()
        works = driver._closer._try_handles()
        driver.close()
        if not works:
            pytest.skip("this process may not open by handle, or the file system has none")
    return how


@pytest.fixture
def many(place: Place) -> list[bytes]:
    """Names of files; each holds its own."""
    names = [b"%d" % i for i in range(MANY)]
    for name in names:
        (place.export / os.fsdecode(name)).write_bytes(name)
    return names


def local(place: Place, model: str = MODEL, **options: Any) -> LocalDriver:
    """The export, in a security model."""
    try:
        return LocalDriver(place.export, model, **options)
    except ConfigError as error:
        pytest.skip(str(error))


# --- more than there are (H082) ---


@pytest.fixture
def few() -> Iterator[int]:
    """The process may open 200 descriptors more."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = max(open_descriptors()) + 200
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, before[1]))
    yield limit
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.usefixtures("opened_by")
@pytest.mark.parametrize("model", MODELS)
@sizes(1000, 20_000)
def test_h082_a_guest_holds_more_than_the_process_may_open(
    start: Start, place: Place, few: int, model: str, count: int
) -> None:
    """1000 fids on files (20,000), and half as many open: all work, again and again, and the host has some left."""
    for i in range(count):
        (place.export / f"{i}").write_bytes(b"%d" % i)
    stack = start(local(place, model), messages=0)
    walked = [stack.new() for _ in range(count)]
    opened = [stack.new() for _ in range(count // 2)]
    setup = [message("Twalk", newfid=fid, wnames=[b"%d" % i]) for i, fid in enumerate(walked)]
    setup += [message("Twalk", newfid=fid, wnames=[b"%d" % i]) for i, fid in enumerate(opened)]
    setup += [message("Tlopen", fid=fid, flags=c.DOTL_RDWR) for fid in opened]
    assert not any(reply.errno for reply in stack.bulk(setup))
    assert len(open_descriptors()) < few
    assert stack.fids == 1 + len(walked) + len(opened)
    for turn in range(2):
        sizes_told = [
            int.from_bytes(reply.body[8 + 13 + 12 + 8 + 8 :][:8], "little")
            for reply in stack.bulk(message("Tgetattr", fid=fid) for fid in walked)
        ]
        assert sizes_told[turn * len(opened) :] == [len(b"%d" % i) for i in range(turn * len(opened), count)]
        for i, reply in enumerate(stack.bulk(message("Tread", fid=fid, count=20) for fid in opened)):
            assert reply.body[4:].startswith(b"%d" % i)
        writes = (message("Twrite", fid=fid, offset=20 * (turn + 1), data=b"more") for fid in opened)
        assert not any(reply.errno for reply in stack.bulk(writes))
        os.close(os.open("/dev/null", os.O_RDONLY))  # there is always one for the program around the device
    stack.do("Tlcreate", fid=stack.fid(), name=b"new")
    stack.do("Tmkdir", name=b"newer")
    assert (place.export / "0").stat().st_size == 44
    assert len(open_descriptors()) < few


def test_h082_when_everything_is_pinned(start: Start, place: Place, many: list[bytes], opened_by: str) -> None:
    """What has no name or has locks stays open. When nothing else is left, ENFILE is the answer, and the rest works."""
    del opened_by
    stack = start(place.driver(max_descriptors=BUDGET))
    linked = [stack.fid(name) for name in many[100:]]
    pinned: list[int] = []
    for i, name in enumerate(many[:100]):
        fid = stack.new()
        reply = stack.ask("Twalk", newfid=fid, wnames=[name])
        if not reply.errno:
            reply = stack.ask("Tlopen", fid=fid, flags=c.DOTL_RDWR)
        if not reply.errno:
            pinned.append(fid)
            if i % 2:
                reply = stack.ask("Tlock", fid=fid)
            else:
                stack.do("Tunlinkat", name=name)
        if reply.errno:
            break
    else:
        pytest.fail("no end of descriptors")
    assert reply.errno == errno.ENFILE
    assert len(pinned) > BUDGET // 4
    full = [stack.ask("Twalk", newfid=stack.new(), wnames=[name]).errno for name in many[60:80]]
    assert set(full) == {errno.ENFILE}  # not ENOENT, and nothing in between
    for request in ("Tlcreate", "Tmkdir", "Tmknod", "Tsymlink"):
        assert stack.errno(request) == errno.ENFILE
    assert not os.path.lexists(place.export / "new")
    for i, fid in enumerate(pinned[:-1]):
        assert stack.read(fid) == b"%d" % i
        stack.do("Twrite", fid=fid, offset=5, data=b"more")
        assert stack.do("Tgetattr", fid=fid)["size"] == 9
    stack.do("Tgetattr")
    stack.do("Tstatfs")
    assert {stack.errno("Tgetattr", fid=fid) for fid in linked} <= {0, errno.ENFILE}
    stack.clunk(*pinned[:8])
    for name, fid in zip(many[100:], linked, strict=True):  # which were closed meanwhile, and are what they were
        stack.do("Tlopen", fid=fid, flags=0)
        assert stack.read(fid) == name
        stack.clunk(fid)
    stack.do("Tlcreate", fid=stack.fid(), name=b"new")


def test_h082_a_reset_gives_all_back(start: Start, place: Place, many: list[bytes]) -> None:
    before = open_descriptors()
    stack = start(place.driver(max_descriptors=BUDGET))
    idle = len(open_descriptors())
    assert idle > len(before)
    for _ in range(3):
        for name in many:
            stack.opened(name)
        stack.remount()
        assert len(open_descriptors()) <= idle + 1  # one to open by handles


# --- clunks meanwhile (H042) ---

USES = (
    "Tgetattr", "Tread", "Twrite", "Twalk", "Tlopen", "Tsetattr", "Tunlinkat", "Tremove", "Tlink", "Trename",
    "Tlcreate",
)  # fmt: skip


@pytest.mark.usefixtures("opened_by")
@pytest.mark.parametrize("name", USES)
@pytest.mark.parametrize("unlinked", [False, True])
def test_h042_a_clunk_during_forced_reclaim(
    start: Start, place: Place, many: list[bytes], name: str, unlinked: bool
) -> None:
    """A request waits; its fids are clunked, what they mean is closed, its name removed, the numbers used again."""
    (place.export / "sub").mkdir()
    (place.export / "sub" / "below").write_bytes(b"deep")
    delayed: DelayedDriver[Any, Any] = DelayedDriver(place.driver(max_descriptors=BUDGET))
    stack = start(delayed, messages=0)
    file, opened, sub = stack.fid(b"file"), stack.opened(b"file"), stack.fid(b"sub")
    keeper = stack.fid(b"file")
    hold = [stack.fid(each) for each in many]  # closes what was held before
    every: dict[str, dict[str, Any]] = {
        "Tgetattr": {"fid": file}, "Tread": {"fid": opened, "count": 8}, "Twrite": {"fid": opened, "data": b"data"},
        "Twalk": {"fid": sub, "newfid": stack.new(), "wnames": [b"below"]}, "Tlopen": {"fid": file},
        "Tsetattr": {"fid": file, "valid": c.SETATTR_MODE, "mode": 0o600},
        "Tunlinkat": {"dirfid": sub, "name": b"below"}, "Tremove": {"fid": file},
        "Tlink": {"dfid": sub, "fid": file, "name": b"hard"},
        "Trename": {"fid": file, "dfid": sub, "name": b"moved"}, "Tlcreate": {"fid": sub, "name": b"made"},
    }  # fmt: skip
    fields = every[name]
    delayed.delay |= {
        "getattr", "read", "write", "walk", "open", "setattr", "unlinkat", "remove", "link", "rename", "create",
    }  # fmt: skip
    slow = stack.start(name, tag=50, **fields)
    assert not slow.done
    delayed.delay.clear()
    used = [fid for key, fid in fields.items() if key in {"fid", "dfid", "dirfid"}]
    for fid in used:
        assert stack.errno("Tclunk", fid=fid) in {0, errno.ENOENT}  # a Tremove has freed it already
    if unlinked:
        stack.do("Tunlinkat", name=b"file")
    for fid, each in zip(hold, many, strict=True):
        assert stack.do("Tgetattr", fid=fid)["size"] == len(each)
    for fid in used:
        stack.do("Twalk", newfid=fid, wnames=[b"7"])
    delayed.release_all()
    stack.device.run_pending()
    reply = reply_of(stack.channel.wait(slow))
    assert reply is not None
    gone = {"Tremove": {errno.ESTALE}, "Trename": {errno.ESTALE}, "Tlink": {errno.ENOENT, errno.ESTALE}}
    if name in {"Tlopen", "Tlcreate"}:
        assert reply.errno == errno.ENOENT  # there is nothing that could be open
    elif unlinked and name in gone:
        assert reply.errno in gone[name]
    else:
        assert reply.errno == 0
    for fid in used:
        assert stack.do("Tgetattr", fid=fid)["size"] == 1
        stack.do("Tlopen", fid=fid, flags=0)
        assert stack.read(fid) == b"7"
    assert stack.do("Tgetattr", fid=keeper)["nlink"] == (
        0 if (unlinked or name == "Tremove") else 2 if name == "Tlink" else 1
    )
    # The root, the three fids, `keeper`, those that hold, and what the walk has made.
    assert stack.fids == 1 + 3 + 1 + len(hold) + (name == "Twalk")


@pytest.mark.usefixtures("opened_by")
@pytest.mark.parametrize("by", ["Tunlinkat", "Tremove", "rename over it", "the host"])
def test_h042_unlinking_what_is_closed(start: Start, place: Place, many: list[bytes], by: str) -> None:
    """Fids on it go on working, or say that it is gone; clunks in between disturb nobody."""
    stack = start(place.driver(max_descriptors=BUDGET), messages=0)
    fids = [stack.fid(b"file") for _ in range(5)]
    opened = stack.opened(b"file")
    inode = stack.qid(fids[0])
    hold = [stack.fid(name) for name in many]
    stack.clunk(fids.pop())
    if by == "Tunlinkat":
        stack.do("Tunlinkat", name=b"file")
    elif by == "Tremove":
        stack.do("Tremove", fid=fids.pop())
    elif by == "rename over it":
        stack.do("Trenameat", oldname=b"5", newname=b"file")
    else:
        (place.export / "file").unlink()
    stack.clunk(fids.pop())
    for fid in hold:
        stack.do("Tgetattr", fid=fid)
    stack.clunk(*hold[:60])
    if by == "the host":  # nobody has told the driver
        for fid in fids:
            assert stack.errno("Tgetattr", fid=fid) in {0, errno.ESTALE}
    else:
        for fid in fids:
            assert stack.do("Tgetattr", fid=fid)["nlink"] == 0
            assert stack.qid(fid) == inode
        assert stack.read(opened) == b"Hi Guest"
    for fid in fids:
        assert stack.errno("Tremove", fid=fid) == errno.ESTALE
    stack.clunk(opened, *hold[60:])
    assert stack.fids == 1
