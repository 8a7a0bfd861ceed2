"""What 9P2000.u and plain 9P2000 have that 9P2000.L has not: modes of their own, Twstat, errors that are texts."""

from __future__ import annotations

import errno
import os
import random
import stat
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import pytest

from pyvirtfs.p9 import constants as c
from pyvirtfs.p9.error_replies import TEXTS
from tests.hostile.older import DIALECTS, NOTHING, Older
from tests.hostile.stack import IS_ROOT, LONGEST_TEXT, ROOT, Place, Stack, as_root, reply_of, sizes, snapshot

Start: TypeAlias = Callable[..., Stack]

UNIX_PLACES = {stat.S_ISUID: c.DMSETUID, stat.S_ISGID: c.DMSETGID, stat.S_ISVTX: c.DMSETVTX}


@pytest.fixture(params=DIALECTS)
def dialect(request: pytest.FixtureRequest) -> str:
    """The name of an older dialect."""
    name: str = request.param
    return name


@pytest.fixture
def client(stack: Stack, dialect: str) -> Older:
    """A client that speaks it."""
    return Older(stack, DIALECTS[dialect])


# --- modes (H010) ---


@pytest.mark.parametrize("bits", range(0, 0o10000, 0o1000))
def test_h010_set_id_and_sticky_bits_stand_where_the_dialect_has_them(client: Older, place: Place, bits: int) -> None:
    """And nowhere in plain 9P2000; in none where Unix has them."""
    for name, kind in (("file", 0), ("folder", c.DMDIR)):
        os.chmod(place.export / name, bits | 0o751)
        host = (place.export / name).stat().st_mode & 0o7000
        told = sum(place for bit, place in UNIX_PLACES.items() if host & bit) if client.unix else 0
        for seen in (
            client.stat(os.fsencode(name))["mode"],
            client.listing(client.opened())[os.fsencode(name)].mode,
        ):
            assert seen == kind | told | 0o751
            assert not seen & 0o7000


def test_h010_nothing_but_folders_and_files_in_plain(client: Older, place: Place) -> None:
    os.mkfifo(place.export / "fifo", 0o666)
    kinds = {b"file": 0, b"folder": c.DMDIR, b"link": c.DMSYMLINK, b"fifo": c.DMNAMEDPIPE}
    if IS_ROOT:
        os.mknod(place.export / "null", stat.S_IFCHR | 0o4666, os.makedev(1, 3))
        kinds[b"null"] = c.DMDEVICE | c.DMSETUID
    listed = client.listing(client.opened())
    assert set(listed) == set(kinds)
    for name, kind in kinds.items():
        for seen in (client.stat(name)["mode"], listed[name].mode):
            assert seen & ~0o777 == (kind if client.unix else kind & c.DMDIR), name


@pytest.mark.parametrize("bit", [1 << shift for shift in range(9, 32)])
def test_h010_no_bit_makes_a_set_id_file_unless_the_dialect_says_so(client: Older, place: Place, bit: int) -> None:
    """Not by a Tcreate and not by a Twstat."""
    granted = {place: host for host, place in UNIX_PLACES.items()}.get(bit, 0) if client.unix else 0
    error = client.errno("Tcreate", fid=client.fid(), perm=bit | 0o751, mode=c.OREAD)
    new = place.export / "new"
    if os.path.lexists(new):
        mode = new.lstat().st_mode
        assert not error
        assert bit in {c.DMDIR, *((c.DMNAMEDPIPE, c.DMSOCKET, *UNIX_PLACES.values()) if client.unix else ())}
        assert mode & 0o7000 == granted
    else:
        assert error in {errno.EPERM, errno.EINVAL, errno.EIO}
    error = client.errno("Twstat", fid=client.fid(b"file"), mode=bit | 0o751)
    mode = (place.export / "file").stat().st_mode
    assert mode & 0o7000 == granted
    assert bool(error) is not bool(granted)
    assert stat.S_IMODE(mode) == (0o644 if error else granted | 0o751)


# --- Twstat against others (H024) ---


@sizes(400, 10_000)
def test_h024_renames_by_a_twstat(start: Start, place: Place, dialect: str, count: int) -> None:
    """400 rounds (10,000): a Twstat renames a folder while others create, stat and list in it, in any order."""
    delayed = place.delayed()
    stack = start(delayed, messages=0)
    client = Older(stack, DIALECTS[dialect])
    names = [b"folder", b"moved", b"again"]
    for seed in range(count):
        dice = random.Random(seed)
        old = next(name for name in names if (place.export / os.fsdecode(name)).exists())
        new = dice.choice([name for name in names if name != old])
        renamed, creator, looker, walker = (client.fid(old) for _ in range(4))
        listing, made = client.opened(old), stack.new()
        delayed.delay |= {"rename", "create", "getattr", "setattr", "readdir", "walk", "place"}
        todo: list[tuple[str, dict[str, Any]]] = [
            ("Twstat", {"fid": renamed, "name": new, "mode": c.DMDIR | 0o755}),
            ("Tcreate", {"fid": creator, "name": b"made"}),
            ("Tstat", {"fid": looker}),
            ("Tread", {"fid": listing}),
            ("Twalk", {"fid": walker, "newfid": made, "wnames": [b".."]}),
        ]
        dice.shuffle(todo)
        sent = []
        for tag, (name, fields) in enumerate(todo):
            sent.append((name, client.start(name, tag=100 + tag, **fields)))
            if dice.random() < 0.4:
                release(stack, delayed, dice)
        while list(delayed.waiting()):
            release(stack, delayed, dice)
        delayed.held.clear()
        delayed.delay.clear()
        for name, request in sent:
            reply = reply_of(stack.channel.wait(request), error=c.RERROR)
            stack.channel.retire(request)
            assert reply is not None
            assert reply.errno == 0, (name, reply.text)
        assert (place.export / os.fsdecode(new) / "made").is_file()
        assert client.do("Tstat", fid=creator)["name"] == b"made"
        assert {client.do("Tstat", fid=fid)["name"] for fid in (renamed, looker, walker, listing)} == {new}
        assert client.do("Tstat", fid=made)["name"] == b"/"
        client.do("Tremove", fid=creator)
        client.clunk(renamed, looker, walker, listing, made)
    assert sorted(os.listdir(place.export)) == sorted(["file", "link", os.fsdecode(new)])


def release(stack: Stack, delayed: Any, dice: random.Random) -> None:
    """Let some of the calls that wait go on."""
    waiting = list(delayed.waiting())
    dice.shuffle(waiting)
    for held in waiting[: dice.randrange(1, 3)]:
        held.release()
    stack.device.run_pending()


def test_h024_a_name_that_the_host_takes_away_meanwhile(start: Start, place: Place, dialect: str) -> None:
    """Between the Twstat's look at the name and its rename, the host puts a link to the outside there."""
    delayed = place.delayed()
    stack = start(delayed)
    client = Older(stack, DIALECTS[dialect])
    fid = client.fid(b"folder", b"below")
    delayed.delay |= {"rename"}
    sent = client.start("Twstat", tag=50, fid=fid, name=b"secret")
    (held,) = delayed.waiting()
    os.rename(place.export / "folder", place.export / "aside")
    os.symlink("../sentinel", place.export / "folder")
    held.release()
    stack.device.run_pending()
    reply = reply_of(stack.channel.wait(sent), error=c.RERROR)
    assert reply is not None
    assert reply.errno == 0
    assert os.listdir(place.export / "aside") == ["secret"]
    assert client.do("Tstat", fid=fid)["name"] == b"secret"


# --- errors (H140) ---


def failing(start: Start, place: Place, dialect: str) -> Callable[..., Any]:
    """A function that lets a Tstat fail with an errno, in so much room, and returns the reply."""
    delayed = place.delayed()
    stack = start(delayed)
    client = Older(stack, DIALECTS[dialect])

    def fail(number: int, room: int = 8192) -> Any:
        delayed.delay.add("getattr")
        sent = client.start("Tstat", room=room, tag=50)
        delayed.delay.clear()
        (held,) = delayed.waiting()
        held.fail(number)
        stack.device.run_pending()
        reply = reply_of(stack.channel.wait(sent), error=c.RERROR)
        stack.channel.retire(sent)
        delayed.held.clear()
        assert reply is not None
        assert reply.kind == c.RERROR
        return reply

    return fail


def test_h140_every_errno(start: Start, place: Place, dialect: str) -> None:
    """Each is told by a text that Linux takes; by its number, too, in 9P2000.u."""
    fail = failing(start, place, dialect)
    for number in (*range(1, 134), 512, 4095):
        reply = fail(number)
        told = errno.EIO if number == errno.EINTR else number  # the guest has interrupted nothing
        assert len(reply.body) == 2 + len(reply.text) + (4 if dialect == "u" else 0)
        assert reply.text == TEXTS.get(told, reply.text) != b""
        if dialect == "u":
            assert reply.errno == told


@pytest.mark.parametrize("text", ["x" * 5000, "Datei oder Verzeichnis fehlt: für immer" * 9, "\u20ac" * 127, "\udcff"])
def test_h140_texts_that_are_long_or_not_ascii(
    start: Start, place: Place, dialect: str, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    """As a host in another language would have them."""
    fail = failing(start, place, dialect)
    monkeypatch.setattr(os, "strerror", lambda _number: text)
    for number in (errno.ENOENT, errno.EDQUOT, errno.EBADE, 4095):
        reply = fail(number)
        assert 0 < len(reply.text) <= LONGEST_TEXT
        assert reply.text.isascii()
        if dialect == "u":
            assert reply.errno == number


def test_h140_texts_that_have_little_room(start: Start, place: Place, dialect: str) -> None:
    """The text is cut off, the number never. Below the least room, nothing can be said: the device needs a reset."""
    fail = failing(start, place, dialect)
    least = 13 if dialect == "u" else 11
    for room in range(least, 40):
        reply = fail(errno.ENAMETOOLONG, room)
        assert reply.text == TEXTS[errno.ENAMETOOLONG][: room - (13 if dialect == "u" else 9)]
        if dialect == "u":
            assert reply.errno == errno.ENAMETOOLONG


def test_h140_with_too_little_room(client: Older) -> None:
    assert client.stack.send(client.message("Tclunk", fid=4711), 12 if client.unix else 8) is None


def test_h140_names_in_errors_do_not_come_back(client: Older) -> None:
    """A text says what was wrong, not with what: a name of any bytes and any length stays out of it."""
    for name in (b"\xff" * 255, b"x" * 60000, b"%s%n" * 60, b"\0", b"\n"):
        every: dict[str, dict[str, Any]] = {
            "Tcreate": {"fid": client.fid(), "name": name + b"/"}, "Twalk": {"newfid": 950, "wnames": [name]},
            "Twstat": {"fid": client.fid(b"file"), "name": name + b"/"}, "Tattach": {"afid": 7, "uname": name},
        }  # fmt: skip
        for request, fields in every.items():
            reply = client.ask(request, **fields)
            assert reply.kind == c.RERROR
            assert reply.text in TEXTS.values()


# --- readonly (H163) ---


@pytest.fixture
def readonly(start: Start, place: Place, dialect: str) -> Iterator[Older]:
    """A client of a readonly export, of which nothing has changed at the end."""
    before = snapshot(place.export)
    yield Older(start(f"{place.fsdev},readonly=on"), DIALECTS[dialect])
    assert snapshot(place.export) == before


CHANGES: dict[str, Any] = {
    "mode": 0o600, "atime": 1, "mtime": 2, "length": 3, "name": b"new", "uid": b"1", "gid": b"2",
    "n_uid": 4, "n_gid": 5, "extension": b"elsewhere", "type": 1, "dev": 2, "qid": (0, 0, 1),
}  # fmt: skip


@pytest.mark.parametrize("field", CHANGES)
def test_h163_each_field_of_a_twstat_on_a_readonly_export(readonly: Older, field: str) -> None:
    for fid in (ROOT, readonly.fid(b"file"), readonly.opened(b"file"), readonly.fid(b"link")):
        if field in NOTHING or readonly.unix:
            assert readonly.errno("Twstat", fid=fid, **{field: CHANGES[field]}) == errno.EROFS
        changes = {key: value for key, value in CHANGES.items() if key in {"mode", "atime", "name", field}}
        assert readonly.errno("Twstat", fid=fid, **changes) == errno.EROFS
        readonly.do("Twstat", fid=fid)  # which asks for no change


def test_h163_each_open_mode_on_a_readonly_export(readonly: Older) -> None:
    known = c.OMODE | c.OTRUNC | c.OCEXEC | c.ORCLOSE | (c.OEXCL | c.OAPPEND if readonly.unix else 0)
    for mode in range(256):
        fid = readonly.fid(b"file")
        writes = mode & c.OMODE in {c.OWRITE, c.ORDWR} or mode & (c.OTRUNC | c.ORCLOSE | c.OAPPEND)
        error = readonly.errno("Topen", fid=fid, mode=mode)
        assert error == (errno.EINVAL if mode & ~known else errno.EROFS if writes else 0), hex(mode)
        if not error:
            assert readonly.do("Tread", fid=fid)["data"] == b"Hi Guest"
            assert readonly.errno("Twrite", fid=fid, data=b"x") == errno.EROFS
        for name in (b"new", b"file"):
            assert readonly.errno("Tcreate", fid=readonly.fid(), name=name, mode=mode) == errno.EROFS


@pytest.mark.parametrize(
    "kind", [0, c.DMDIR, c.DMSYMLINK, c.DMLINK, c.DMDEVICE, c.DMNAMEDPIPE, c.DMSOCKET], ids=hex
)  # fmt: skip
def test_h163_nothing_is_made_or_removed_on_a_readonly_export(readonly: Older, kind: int) -> None:
    source = readonly.fid(b"file")
    for extension in (b"", b"target", b"%d\n" % source, b"c 1 3"):
        assert readonly.errno("Tcreate", fid=readonly.fid(), perm=kind | 0o644, extension=extension) == errno.EROFS
    for name in (b"file", b"folder", b"link"):
        gone = readonly.fid(name)
        assert readonly.errno("Tremove", fid=gone) == errno.EROFS
        assert readonly.errno("Tclunk", fid=gone) == errno.ENOENT  # the fid goes whatever the answer


# --- users: the same as in 9P2000.L (H166) ---


@as_root
def test_h166_the_owner_is_the_user_of_the_attach_in_9p2000_u(stack: Stack, place: Place) -> None:
    """Plain 9P2000 knows nobody's number: there, what is made belongs to the server."""
    for name, vocabulary in DIALECTS.items():
        client = Older(stack, vocabulary)
        for uid in (1000, 0, 65534):
            root = stack.new()
            client.do("Tattach", fid=root, n_uname=uid, uname=b"%d" % uid)
            for kind, perm in (("file", 0o644), ("folder", c.DMDIR | 0o755)):
                new = f"{name}-{uid}-{kind}"
                client.do("Tcreate", fid=client.fid(base=root), name=os.fsencode(new), perm=perm, mode=0)
                assert (place.export / new).stat().st_uid == (uid if client.unix else 0)
