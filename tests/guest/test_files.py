from __future__ import annotations

import errno
import inspect
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pyvirtfs.guest import GuestPath
from pyvirtfs.guest.files import dotl_flags
from pyvirtfs.p9 import constants as c
from pyvirtfs.testing import pair


@pytest.fixture
def root(export: Path) -> Iterator[GuestPath]:
    with pair(f"local,path={export},security_model=none") as both:
        yield both.mount.root


def test_paths(root: GuestPath) -> None:
    path = root / "a" / b"b\xff" / "c/d"
    assert bytes(path) == b"/a/b\xff/c/d"
    assert str(path) == "/a/b\udcff/c/d"
    assert (path.name, str(path.parent.name)) == ("d", "c")
    assert path.parent.parent.parent.parent == root == root.parent
    assert root.name == ""
    assert str(root) == "/"
    assert path / "/x" == root / "x"
    assert path.with_name("e") == root.joinpath("a", b"b\xff", "c", "e")
    assert repr(root / "a") == "GuestPath('/a')"
    assert {root / "a", root / "./a/"} == {root / "a"}
    assert sorted([root / "b", root / "a"]) == [root / "a", root / "b"]
    assert root != "/"


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (os.O_RDONLY, c.DOTL_RDONLY),
        (os.O_RDWR | os.O_CREAT | os.O_EXCL, c.DOTL_RDWR | c.DOTL_CREATE | c.DOTL_EXCL),
        (os.O_WRONLY | os.O_APPEND | os.O_TRUNC, c.DOTL_WRONLY | c.DOTL_APPEND | c.DOTL_TRUNC),
        (os.O_SYNC, c.DOTL_SYNC | c.DOTL_DSYNC),
        (os.O_DSYNC, c.DOTL_DSYNC),
        (os.O_DIRECTORY | os.O_NOFOLLOW | os.O_NOATIME, c.DOTL_DIRECTORY | c.DOTL_NOFOLLOW | c.DOTL_NOATIME),
        (os.O_DIRECT | os.O_NONBLOCK | os.O_CLOEXEC, c.DOTL_DIRECT | c.DOTL_NONBLOCK | c.DOTL_CLOEXEC),
    ],
)
def test_flags(flags: int, expected: int) -> None:
    assert dotl_flags(flags) == expected | c.DOTL_LARGEFILE


def test_errors_name_the_file(root: GuestPath) -> None:
    for act in (
        root.joinpath("no", "such").stat,
        root.joinpath("no", "such").read_bytes,
        root.joinpath("no", "such").mkdir,
        root.joinpath("no", "such").readlink,
        lambda: list(root.joinpath("no", "such").iterdir()),
    ):
        with pytest.raises(FileNotFoundError) as caught:
            act()
        assert caught.value.filename == "/no/such"
    with pytest.raises(OSError, match="busy"):
        root.rmdir()


def test_mkdir_options(root: GuestPath) -> None:
    (root / "a" / "b" / "c").mkdir(parents=True)
    (root / "a").mkdir(exist_ok=True)
    with pytest.raises(FileExistsError):
        (root / "a").mkdir()
    with pytest.raises(FileExistsError):
        (root / "file").mkdir(exist_ok=True)
    assert [(str(folder), folders, files) for folder, folders, files in (root / "a").walk()] == [
        ("/a", ["b"], []),
        ("/a/b", ["c"], []),
        ("/a/b/c", [], []),
    ]


def test_unlink_touch_exists(root: GuestPath) -> None:
    (root / "gone").unlink(missing_ok=True)
    with pytest.raises(FileNotFoundError):
        (root / "gone").unlink()
    (root / "new").touch(0o600)
    (root / "new").touch()
    with pytest.raises(FileExistsError):
        (root / "new").touch(exist_ok=False)
    assert (root / "new").exists()
    assert not (root / "new" / "below").exists()
    assert not (root / "new").is_dir()
    assert not (root / "none").is_symlink()


def test_unbuffered_and_buffered(root: GuestPath) -> None:
    with (root / "file").open("rb", buffering=0) as raw:
        assert raw.read(2) == b"Hi"
    with pytest.raises(ValueError, match="buffered"):
        (root / "file").open("r", buffering=0)
    with pytest.raises(ValueError, match="encoding"):
        (root / "file").open("rb", encoding="utf-8")
    with (root / "lines").open("w", newline="\r\n") as text:
        text.write("a\nb\n")
    assert (root / "lines").read_bytes() == b"a\r\nb\r\n"
    assert (root / "lines").read_text() == "a\nb\n"


# --- as pathlib does it on a folder of the host ---

NAMES = [
    "file.txt",
    "full",
    "empty",
    "fifo",
    "socket",
    "to_file",
    "to_folder",
    "dangling",
    "nowhere",
    "loop",
    "chain",
    "hard",
    "none",
    "none/below",
    "file.txt/below",
    "loop/below",
    "full/up",
    "full/deep/..",
    "none/..",
    "file.txt/..",
    "to_folder/..",
    "to_bytes/\udcfe.txt",
    "\udcff",
    "not\udcffutf",
    "gr\u00fcn",
    "nul\0",
    "x" * 255,
    "x" * 256,
    "",
]


def write_at_end(path: Any) -> None:
    with path.open("a") as file:
        file.write("more")


QUESTIONS: dict[str, Callable[[Any], Any]] = {
    "stat": lambda path: path.stat(),
    "lstat": lambda path: path.lstat(),
    "exists": lambda path: path.exists(),
    "is_dir": lambda path: path.is_dir(),
    "is_file": lambda path: path.is_file(),
    "is_symlink": lambda path: path.is_symlink(),
    "is_fifo": lambda path: path.is_fifo(),
    "is_socket": lambda path: path.is_socket(),
    "is_block_device": lambda path: path.is_block_device(),
    "is_char_device": lambda path: path.is_char_device(),
    "readlink": lambda path: str(path.readlink()),
    "iterdir": lambda path: path.iterdir(),
}
ACTS: dict[str, Callable[[Any], Any]] = {
    "touch": lambda path: path.touch(),
    "touch_new": lambda path: path.touch(0o640, False),
    "mkdir": lambda path: path.mkdir(),
    "mkdir_exist_ok": lambda path: path.mkdir(0o711, False, True),
    "mkdir_parents": lambda path: path.mkdir(0o700, True),
    "rmdir": lambda path: path.rmdir(),
    "unlink": lambda path: path.unlink(),
    "unlink_missing_ok": lambda path: path.unlink(True),
    "chmod": lambda path: path.chmod(0o700),
    "symlink_to": lambda path: path.symlink_to("some/where"),
}
CONTENTS: dict[str, Callable[[Any], Any]] = {
    "read": lambda path: path.read_text(errors="replace"),
    "write": lambda path: path.write_text("a\nb\n", newline="\r\n"),
    "write_bytes": lambda path: path.write_bytes(b"bytes"),
    "write_nonsense": lambda path: path.write_text(b"no text"),
    "append": write_at_end,
    "create": lambda path: path.open("x").close(),
}
MOVES: dict[str, Callable[[Any, Any], Any]] = {
    "rename": lambda path, other: path.rename(other),
    "replace": lambda path, other: path.replace(other),
    "hardlink_to": lambda path, other: path.hardlink_to(other),
    "samefile": lambda path, other: path.samefile(other),
}
OPENED = [name for name in NAMES if name not in {"fifo", "socket"}]  # those are the guest's own; nobody opens them


@pytest.mark.parametrize("name", NAMES)
def test_questions(still_twins: Any, name: str) -> None:
    for ask in QUESTIONS.values():
        still_twins.ask(lambda top, ask=ask: ask(top / name))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("act", ACTS)
def test_acts(twins: Any, act: str, name: str) -> None:
    twins.check(lambda top: ACTS[act](top / name))


@pytest.mark.parametrize("name", OPENED)
@pytest.mark.parametrize("act", CONTENTS)
def test_contents(twins: Any, act: str, name: str) -> None:
    twins.check(lambda top: CONTENTS[act](top / name))


@pytest.mark.parametrize("name", ["file.txt", "full", "empty", "to_file", "dangling", "none", "full/deep/..", "socket"])
@pytest.mark.parametrize("act", MOVES)
def test_moves(twins: Any, act: str, name: str) -> None:
    for other in (
        "new",
        "hard",
        "empty",
        "full",
        "to_folder/new",
        "loop",
        "none/new",
        "full/deep",
        "file.txt/x",
        "\udcff",
    ):
        twins.check(lambda top, other=other: MOVES[act](top / name, top / other))


# Not loops, which pathlib makes RuntimeErrors of, nor what is beside a file, which it takes for a folder (until 3.13).
RESOLVED = [name for name in NAMES if "loop" not in name and name not in {"nul\0", "file.txt/.."}]


@pytest.mark.parametrize("name", RESOLVED)
@pytest.mark.parametrize("strict", [False, True])
def test_resolve(still_twins: Any, name: str, strict: bool) -> None:
    def act(top: Any) -> Any:
        try:
            return (top / name).resolve(strict)
        except OSError as error:
            return error.errno  # os.path.realpath names the part that is missing

    still_twins.ask(act)


def test_resolve_finds_the_same_file(still_twins: Any) -> None:
    assert still_twins.ask(lambda top: (top / "full/around/around/deep/deeper/../../up").resolve()) == b"/empty"
    assert still_twins.ask(lambda top: (top / "to_bytes").resolve()) == b"/not\xffutf"
    assert still_twins.ask(lambda top: (top / "nowhere/../x").resolve()) == b"/no/x"


@pytest.mark.parametrize("name", ["loop", "loop/below"])
@pytest.mark.parametrize("strict", [False, True])
def test_resolve_of_a_loop(still_twins: Any, name: str, strict: bool) -> None:
    with pytest.raises(OSError, match="symbolic links") as caught:
        (still_twins.guest / name).resolve(strict)
    assert (caught.value.errno, caught.value.filename) == (errno.ELOOP, str(still_twins.guest / name))


def test_resolve_of_an_absolute_link_counts_from_the_mounts_root(twins: Any) -> None:
    (twins.guest / "absolute").symlink_to(twins.guest / "full" / ".." / "empty")
    assert (twins.guest / "absolute" / "x").resolve() == twins.guest / "empty" / "x"
    assert (twins.guest / f"../../..{twins.guest}/full").resolve(strict=True) == twins.guest / "full"


@pytest.mark.parametrize("top_down", [True, False])
@pytest.mark.parametrize("follow", [True, False])
def test_walk(twins: Any, top_down: bool, follow: bool) -> None:
    """As os.walk, whose only difference is that it counts links to folders as folders that it does not enter."""
    if follow:
        (twins.guest / "full/around").unlink()  # it would lead round and round
        (twins.host / "full/around").unlink()
    seen = {}
    for folder, folders, files in twins.guest.walk(top_down, None, follow):
        seen[str(folder.relative_to(twins.guest))] = (sorted(folders), sorted(files))
    expected = {}
    for folder, folders, files in os.walk(twins.host, top_down, None, follow):
        links = [] if follow else [name for name in folders if os.path.islink(os.path.join(folder, name))]
        rest = sorted(set(folders) - set(links))
        expected[os.path.relpath(folder, twins.host)] = (rest, sorted([*files, *links]))
    assert seen == expected
    assert list(seen)[0 if top_down else -1] == "."


def test_walk_tells_errors_or_goes_on(twins: Any) -> None:
    errors: list[OSError] = []
    assert list((twins.guest / "none").walk()) == list((twins.guest / "file.txt").walk(on_error=errors.append)) == []
    assert [(error.errno, error.filename) for error in errors] == [(errno.ENOTDIR, str(twins.guest / "file.txt"))]
    entered = []
    for folder, folders, _ in twins.guest.walk():
        entered.append(folder.name)
        folders[:] = [name for name in folders if name == "full"]
    assert entered == ["top", "full"]


@pytest.mark.parametrize("times", [(1.5, 2.25), (-1.5, -0.1), (0, 1e9 + 0.1), (2**33 + 0.123456789, 7)])
def test_times_in_seconds(twins: Any, times: tuple[float, float]) -> None:
    (twins.guest / "file.txt").utime(times)
    os.utime(twins.host / "file.txt", times)
    assert (twins.guest / "file.txt").stat().st_mtime_ns == (twins.host / "file.txt").stat().st_mtime_ns
    assert (twins.served / "file.txt").stat().st_atime_ns == (twins.host / "file.txt").stat().st_atime_ns
    with pytest.raises(ValueError, match="exclude"):
        (twins.guest / "file.txt").utime(times, ns=(1, 2))


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("full", os.O_CREAT),
        ("dangling", os.O_CREAT | os.O_WRONLY),
        ("dangling", os.O_CREAT | os.O_WRONLY | os.O_NOFOLLOW),
        ("dangling", os.O_CREAT | os.O_WRONLY | os.O_EXCL),
        ("nowhere", os.O_CREAT | os.O_WRONLY),
        ("none/../new", os.O_CREAT | os.O_WRONLY),
        ("to_folder/new", os.O_CREAT | os.O_WRONLY),
        ("to_file", os.O_NOFOLLOW),
        ("file.txt", os.O_DIRECTORY),
        ("full", os.O_WRONLY),
        ("hard", os.O_TRUNC | os.O_WRONLY),
        ("loop", os.O_CREAT),
    ],
)
def test_open_flags(twins: Any, name: str, flags: int) -> None:
    def act(top: Any) -> None:
        if isinstance(top, GuestPath):
            (top / name).open_raw(flags).close()
        else:
            os.close(os.open(top / name, flags, 0o666))

    twins.check(act)


def test_os_minded_methods(twins: Any) -> None:
    assert sorted(twins.guest.listdir()) == sorted(os.listdir(twins.host))
    (twins.guest / "full" / "pipe").mkfifo(0o600)
    assert (twins.served / "full" / "pipe").is_fifo()
    assert (twins.guest / "file.txt").rename(str(twins.guest / "renamed")) == twins.guest / "renamed"
    assert (twins.guest / "renamed").samefile(str(twins.guest / "hard"))


def test_other_mounts_are_other_devices(twins: Any, export: Path) -> None:
    with pair(f"local,path={export},security_model=none") as both:
        for act in ((twins.guest / "file.txt").rename, (twins.guest / "new").hardlink_to):
            with pytest.raises(OSError, match="cross-device") as caught:
                act(both.mount.root / "file")
            assert caught.value.errno == errno.EXDEV
        assert not twins.guest.parent.samefile(both.mount.root)


@pytest.mark.parametrize(
    ("act", "number"),
    [
        (lambda root: root.mkdir(), errno.EEXIST),
        (lambda root: root.rmdir(), errno.EBUSY),
        (lambda root: root.unlink(), errno.EISDIR),
        (lambda root: root.rename("/x"), errno.EBUSY),
        (lambda root: (root / "file").rename(root), errno.EBUSY),
        (lambda root: root.symlink_to("x"), errno.EEXIST),
        (lambda root: root.hardlink_to(root / "file"), errno.EEXIST),
        (lambda root: root.mkfifo(), errno.EEXIST),
    ],
)
def test_the_root_has_no_name(root: GuestPath, act: Callable[[GuestPath], Any], number: int) -> None:
    with pytest.raises(OSError, match=r"\[Errno") as caught:
        act(root)
    assert caught.value.errno == number
    root.mkdir(exist_ok=True)


def test_trees_deeper_than_python_calls(export: Path) -> None:
    before = sys.getrecursionlimit()
    with pair(f"local,path={export},security_model=none") as both:
        top = both.mount.path("d")
        sys.setrecursionlimit(len(inspect.stack(0)) + 100)
        try:
            top.joinpath(*(["d"] * 119)).mkdir(parents=True)
            folders = [len(folder.names) for folder, _, _ in top.walk()]
            upwards = [len(folder.names) for folder, _, _ in top.walk(top_down=False)]
        finally:
            sys.setrecursionlimit(before)
    assert folders == list(range(1, 121))
    assert upwards == folders[::-1]


def test_targets_of_links_have_an_end(export: Path) -> None:
    with pair(f"local,path={export},security_model=none", msize=8192) as both:
        for nbytes in (9000, 65535, 65536):
            with pytest.raises(OSError, match="too long") as caught:
                both.mount.path("link").symlink_to("x" * nbytes)
            assert caught.value.errno == errno.ENAMETOOLONG
        assert both.session.client.fids == {both.mount.root_fid}
        assert both.mount.path("file").exists()
