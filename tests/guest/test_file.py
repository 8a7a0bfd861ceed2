from __future__ import annotations

import io
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyvirtfs.guest import COPYING, LINUX, GuestPath
from pyvirtfs.testing import Pair, pair


@pytest.fixture(params=[LINUX, COPYING], ids=["lent", "copied"])
def both(export: Path, request: pytest.FixtureRequest) -> Iterator[Pair]:
    with pair(f"local,path={export},security_model=none", msize=8192, shapes=request.param) as both:
        yield both


@pytest.fixture
def root(both: Pair) -> GuestPath:
    return both.mount.root


steps = st.lists(
    st.one_of(
        st.tuples(st.just("read"), st.integers(0, 20_000)),
        st.tuples(st.just("write"), st.integers(0, 20_000)),
        st.tuples(st.just("seek"), st.integers(0, 30_000)),
        st.tuples(st.just("truncate"), st.integers(0, 30_000)),
    ),
    max_size=8,
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps)
def test_a_file_behaves_as_bytes_in_memory(root: GuestPath, steps: list[tuple[str, int]]) -> None:
    model, noise = io.BytesIO(), random.Random(0)
    with (root / "same").open_raw(os.O_RDWR | os.O_CREAT | os.O_TRUNC) as file:
        for action, number in steps:
            if action == "read":
                assert file.read(number) == model.read(number)
            elif action == "write":
                data = noise.randbytes(number)
                assert file.write(data) == model.write(data)
            elif action == "seek":
                assert file.seek(number) == model.seek(number)
            else:
                assert file.truncate(number) == number
                model.truncate(number)
                if len(model.getvalue()) < number:  # BytesIO does not extend
                    position = model.tell()
                    model.seek(0, 2)
                    model.write(bytes(number - model.tell()))
                    model.seek(position)
            assert file.tell() == model.tell()
        file.seek(0)
        assert file.readall() == model.getvalue()


def test_seek(root: GuestPath) -> None:
    with (root / "file").open_raw() as file:
        assert file.seek(-3, os.SEEK_END) == 5
        assert file.read() == b"est"
        assert file.seek(-2, os.SEEK_CUR) == 6
        with pytest.raises(OSError, match="Invalid"):
            file.seek(-1)
        with pytest.raises(ValueError, match="whence"):
            file.seek(0, 9)


def test_what_it_is_open_for(root: GuestPath) -> None:
    with (root / "file").open_raw() as file:
        assert (file.readable(), file.writable(), file.seekable()) == (True, False, True)
        with pytest.raises(OSError, match=r"Bad file|Invalid"):
            file.write(b"x")
    with (root / "file").open_raw(os.O_WRONLY) as file:
        assert (file.readable(), file.writable()) == (False, True)
        assert "fid=" in repr(file)
    assert "closed" in repr(file)
    for act in (file.tell, lambda: file.seek(0), lambda: file.write(b"x"), lambda: file.readinto(bytearray(1))):
        with pytest.raises(ValueError, match="closed"):
            act()
    file.close()


def test_closing_gives_everything_back(both: Pair, root: GuestPath) -> None:
    root.joinpath("file").read_bytes()
    pages, fids = both.guest.dma.pages_in_use, both.session.client.fids
    for _ in range(3):
        with (root / "file").open("r+b") as file:
            file.read()
            file.write(bytes(50_000))
    assert both.session.client.fids == fids
    assert both.guest.dma.pages_in_use <= pages + 4  # pooled message buffers


def test_messages_are_as_large_as_they_may_be(both: Pair, root: GuestPath) -> None:
    data = bytes(range(256)) * 100
    both.session.counts.clear()
    with (root / "big").open_raw(os.O_RDWR | os.O_CREAT) as file:
        file.write(data)
        file.seek(0)
        assert file.readall() == data
        assert len(file.pread(100_000, 0)) == 8192 - 24
    assert both.session.counts["Twrite"] == -(-len(data) // (8192 - 24))


def test_text_wrapper_and_buffers(root: GuestPath) -> None:
    raw = (root / "file").open_raw(os.O_RDWR)
    with io.TextIOWrapper(io.BufferedRandom(raw), "utf-8") as text:
        assert text.readline() == "Hi Guest"
        text.write("!\nbye")
    assert raw.closed
    assert (root / "file").read_text().splitlines() == ["Hi Guest!", "bye"]
