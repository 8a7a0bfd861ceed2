"""The lexical half of paths does what pathlib does."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Any

import pytest

from pyvirtfs.guest import GuestPath, Mount
from pyvirtfs.guest.paths import PureGuestPath
from pyvirtfs.testing import Pair, pair

PATHS = [
    "/",
    "/a",
    "/a/b.txt",
    "/a.d/b.tar.gz",
    "/a/.hidden",
    "/a/.hidden.txt",
    "/a/dot.",
    "/a/../b",
    "/a/..",
    "/a/./b/",
    "/gr\u00fcn/\udcff\udcfe.\udcfd",
    "/new\nline/ ",
]
OTHERS = [
    "",
    "/",
    "a",
    "/a",
    "a/b",
    "/a/b.txt",
    "..",
    "./x",
    "/gr\u00fcn",
    "\udcff",
    "x/\udcff",
    "../..",
    "b.txt",
    ".gz",
]
PATTERNS = ["*", "*.txt", "b.*", "/a/*", "/*", "a/b.txt", "[ab]", "?", "A", "*/*.gz", "\udcff*", "*.\udcfd", ""]

PROPERTIES: list[Callable[[Any], Any]] = [
    lambda path: path.parts,
    lambda path: path.name,
    lambda path: path.stem,
    lambda path: path.suffix,
    lambda path: path.suffixes,
    lambda path: path.parent,
    lambda path: list(path.parents),
    lambda path: path.anchor,
    lambda path: path.as_posix(),
    lambda path: path.is_absolute(),
    bytes,
    str,
]
OPERATIONS: list[Callable[[Any, Any], Any]] = [
    lambda path, other: path / other,
    lambda path, other: path.joinpath(other, "x", other),
    lambda path, other: path.joinpath("x", "/y", other),
    lambda path, other: path.with_name(other),
    lambda path, other: path.with_stem(other),
    lambda path, other: path.with_suffix(other),
    lambda path, other: path.relative_to(other),
    lambda path, other: path.is_relative_to(other),
]


class NoMount:
    """Lexical methods ask nobody."""

    def __init__(self) -> None:
        self.session = object()


@pytest.fixture
def mount() -> Any:
    return NoMount()


@pytest.fixture
def another_mount() -> Any:
    return NoMount()


def outcome(act: Callable[..., Any], *args: Any) -> Any:
    try:
        value = act(*args)
    except ValueError as error:
        return type(error)
    if isinstance(value, list):
        return [str(item) for item in value]
    return str(value) if isinstance(value, PureGuestPath | PurePosixPath) else value


@pytest.mark.parametrize("text", PATHS)
def test_properties(mount: Any, text: str) -> None:
    for act in PROPERTIES:
        assert outcome(act, PureGuestPath(mount, text)) == outcome(act, PurePosixPath(text))


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("text", PATHS)
def test_operations(mount: Any, text: str, other: str) -> None:
    for i, act in enumerate(OPERATIONS):
        assert outcome(act, PureGuestPath(mount, text), other) == outcome(act, PurePosixPath(text), other), i


@pytest.mark.parametrize("text", PATHS)
def test_patterns(mount: Any, text: str) -> None:
    for pattern in PATTERNS:
        expected = outcome(PurePosixPath.match, PurePosixPath(text), pattern)
        assert outcome(PureGuestPath.match, PureGuestPath(mount, text), pattern) == expected


def test_order_and_equality_are_those_of_pathlib(mount: Any, another_mount: Any) -> None:
    texts = [*PATHS, "/\uffff", "/\udc80", "/\U00010000", "/A", "/a b", "/a/b", "/a.b"]
    guests = sorted(PureGuestPath(mount, text) for text in texts)
    assert [str(path) for path in guests] == [str(path) for path in sorted(map(PurePosixPath, texts))]
    path = PureGuestPath(mount, "/a/b")
    assert path == PureGuestPath(mount, b"a", "./b/")
    assert hash(path) == hash(PureGuestPath(mount, "a//b"))
    assert path != PureGuestPath(another_mount, "/a/b")
    assert path != PurePosixPath("/a/b")
    with pytest.raises(TypeError):
        path < "/a"  # noqa: B015 (what cannot be done)


def test_what_segments_may_be(mount: Any, another_mount: Any) -> None:
    path = PureGuestPath(mount, "a", b"b\xff", PurePosixPath("c/d"))
    assert path.names == (b"a", b"b\xff", b"c", b"d")
    assert path / PureGuestPath(mount, "x") == PureGuestPath(mount, "x")
    assert path.with_name(b"\xfe").names[-1] == b"\xfe"
    assert path.absolute() is path
    assert path.relative_to(PureGuestPath(mount, "a", b"b\xff")) == PurePosixPath("c/d")
    assert PureGuestPath(mount, "a") / path.relative_to("/a") == path
    with pytest.raises(ValueError, match="another mount"):
        path.relative_to(PureGuestPath(another_mount, "a"))
    with pytest.raises(TypeError):
        path / 5  # type: ignore[operator]  # what cannot be done
    with pytest.raises(TypeError):
        os.fspath(path)  # type: ignore[call-overload]  # the host must not take it for one of its own


@pytest.mark.skipif(sys.version_info < (3, 12), reason="pathlib had no such options")
def test_options_are_those_of_the_running_python(mount: Any) -> None:
    path = PureGuestPath(mount, "/a/b")
    assert path.relative_to("/a/c", walk_up=True) == PurePosixPath("../b")
    assert path.match("B", case_sensitive=False)


def test_a_path_of_a_mount_stays_one(export: Any) -> None:
    with pair(f"local,path={export},security_model=none") as both:
        check_kind(both)


def check_kind(both: Pair) -> None:
    path = both.mount.path("a", "b.txt")
    made = [path.parent, *path.parents, path / "c", path.with_suffix(""), path.with_name("x"), path.joinpath("/")]
    assert all(type(one) is GuestPath and isinstance(one.mount, Mount) for one in made)
    assert repr(path) == "GuestPath('/a/b.txt')"
