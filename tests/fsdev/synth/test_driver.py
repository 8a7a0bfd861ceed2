from __future__ import annotations

import errno
import os
import threading
from typing import Any

import pytest

from pyvirtfs.errors import ConfigError
from pyvirtfs.fsdev import registry
from pyvirtfs.fsdev.completion import Completion
from pyvirtfs.fsdev.driver import NOW, SetAttributes
from pyvirtfs.fsdev.synth import SynthDriver
from pyvirtfs.fsdev.synth.driver import MAX_HELD, MAX_STORED
from pyvirtfs.memory.buffers import ViewBuffers
from pyvirtfs.testing import check_driver, pair
from pyvirtfs.testing.conformance.subject import Subject


def full_tree(**options: Any) -> SynthDriver:
    tree = SynthDriver(**options)
    tree.file("status", read="running\n")
    tree.file("control", write=lambda _: None)
    tree.file("settings", read=lambda: "x" * 100_000, store=lambda _: None)
    tree.root.symlink("link", "status")
    folder = tree.folder("counters").folder("more")
    for number in range(200):
        folder.file(f"{number}", read=f"{number}")
    return tree


@pytest.mark.parametrize("readonly", [False, True])
def test_conformance(readonly: bool) -> None:
    report = check_driver(lambda: full_tree(readonly=readonly))
    assert len(report.passed) == 24 + readonly


def test_a_text_is_made_at_each_open(tree: SynthDriver, export: Subject) -> None:
    count = iter(range(1000, 9999))
    tree.file("count", read=lambda: f"{next(count)}\n")
    node = export.find(b"count")
    with export.opened(node) as one, export.opened(node) as two:
        first = export.content_of(one, 2)
        assert export.content_of(one, 3) == first
        assert export.content_of(two) > first
    assert export.attributes(node).size == 5


def test_the_size_can_be_given(tree: SynthDriver, export: Subject) -> None:
    calls: list[int] = []

    def read() -> str:
        calls.append(1)
        return "x"

    tree.file("file", read=read, size=4096)
    node = export.find(b"file")
    assert export.attributes(node).size == 4096
    assert not calls
    assert export.content(node) == b"x"
    assert len(calls) == 1


def test_each_write_is_a_call(tree: SynthDriver, export: Subject) -> None:
    got: list[bytes] = []
    tree.file("control", write=got.append)
    node = export.find(b"control")
    with export.opened(node, os.O_WRONLY | os.O_TRUNC) as file:
        for offset, data in ((0, b"start\n"), (6, b"stop\n"), (0, b"again")):
            export.put(file, offset, data)
        assert export.write(file, 0, ViewBuffers([])) == 0
    assert got == [b"start\n", b"stop\n", b"again"]
    export.setattr(node, SetAttributes(size=0, mtime_ns=NOW), 0)


def test_a_store_is_called_once_with_the_whole(tree: SynthDriver, export: Subject) -> None:
    kept = [b"old content"]
    tree.file("file", read=lambda: kept[-1], store=kept.append)
    node = export.find(b"file")
    version = export.qid(node).version
    with export.opened(node, os.O_RDWR) as file:
        assert export.get(file, 0, 3) == b"old"
        export.put(file, 0, b"new")
        assert kept == [b"old content"]
        assert export.get(file, 0, 20) == b"new content"
    assert kept == [b"old content", b"new content"]
    assert export.qid(node).version != version
    with export.opened(node, os.O_WRONLY | os.O_TRUNC) as file:
        export.put(file, 2, b"x")
    assert kept[-1] == b"\0\0x"
    with export.opened(node, os.O_WRONLY | os.O_APPEND) as file:
        export.put(file, 0, b"yz")
    assert kept[-1] == b"\0\0xyz"
    with export.opened(node, os.O_WRONLY | os.O_TRUNC):
        pass
    assert kept[-1] == b""
    with export.opened(node, os.O_RDWR):
        pass
    assert len(kept) == 5


def test_the_size_of_what_is_to_be_stored(tree: SynthDriver, export: Subject) -> None:
    kept: list[bytes] = []
    tree.file("file", read=b"old content", store=kept.append)
    node = export.find(b"file")
    with export.opened(node, os.O_WRONLY) as file:
        export.setattr(node, SetAttributes(size=3), 0)
        export.setattr(node, SetAttributes(size=5), 0)
        for size in (MAX_STORED + 1, 1 << 63):
            with export.refuses(errno.EFBIG):
                export.setattr(node, SetAttributes(size=size), 0)
        with export.refuses(errno.EFBIG):
            export.write(file, MAX_STORED, ViewBuffers.of(b"x"))
    assert kept == [b"old\0\0"]
    export.setattr(node, SetAttributes(size=0), 0)
    assert kept[1:] == [b""]
    with export.refuses(errno.EPERM):
        export.setattr(node, SetAttributes(size=5), 0)


def test_what_many_open_files_hold_together(tree: SynthDriver, export: Subject) -> None:
    kept: list[bytes] = []
    tree.file("file", read=b"x" * 1000, store=kept.append)
    node = export.find(b"file")
    count = MAX_HELD // MAX_STORED
    files = [export.open(node, os.O_RDWR, 0)[0] for _ in range(count + 1)]
    with export.refuses(errno.ENOSPC):
        export.setattr(node, SetAttributes(size=MAX_STORED), 0)
    for file in files[1:count]:
        export.write(file, MAX_STORED - 1, ViewBuffers.of(b"y"))
    export.write(files[0], MAX_STORED - 1001, ViewBuffers.of(b"y"))
    with export.refuses(errno.ENOSPC):
        export.write(files[count], 1000, ViewBuffers.of(b"y"))
    with export.refuses(errno.ENOSPC):
        export.open(node, os.O_RDWR, 0)
    export.write(files[count], 0, ViewBuffers.of(b"y"))  # takes nothing more
    export.setattr(node, SetAttributes(size=0), 0)
    for file in files:
        export.close_file(file)
    assert kept == [b""] * (count + 1)
    with export.opened(node, os.O_RDWR):
        export.setattr(node, SetAttributes(size=MAX_STORED), 0)


def test_only_what_there_is_a_function_for(tree: SynthDriver, export: Subject) -> None:
    tree.file("r", read=b"")
    tree.file("w", write=lambda _: None)
    tree.root.symlink("l", "r")
    for name, flags, code in (
        (b"r", os.O_WRONLY, errno.EACCES),
        (b"r", os.O_RDWR, errno.EACCES),
        (b"r", os.O_TRUNC, errno.EACCES),
        (b"w", os.O_RDONLY, errno.EACCES),
        (b"w", os.O_RDWR, errno.EACCES),
        (b"r", os.O_DIRECTORY, errno.ENOTDIR),
        (b"l", os.O_RDONLY, errno.ENXIO),
    ):
        with export.refuses(code):
            export.open(export.find(name), flags, 0)
    for name, changes, code in (
        (b"r", SetAttributes(size=0), errno.EPERM),
        (b"r", SetAttributes(mode=0o600), errno.EPERM),
        (b"r", SetAttributes(uid=5), errno.EPERM),
        (b"w", SetAttributes(mtime_ns=5), errno.EPERM),
        (b"l", SetAttributes(size=0), errno.EINVAL),
    ):
        with export.refuses(code):
            export.setattr(export.find(name), changes, 0)
    with export.refuses(errno.EISDIR):
        export.setattr(export.root, SetAttributes(size=0), 0)
    export.setattr(export.find(b"r"), SetAttributes(atime_ns=NOW, mtime_ns=NOW), 0)  # touch
    with export.refuses(errno.EOPNOTSUPP):
        export.mkdir(export.root, b"new", 0o755, 0, 0)


def test_errors_of_functions(tree: SynthDriver, export: Subject, caplog: pytest.LogCaptureFixture) -> None:
    def busy(*_: Any) -> Any:
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))

    def broken(*_: Any) -> Any:
        raise ZeroDivisionError

    for function, code in ((busy, errno.EBUSY), (broken, errno.EIO)):
        tree.file("file", read=function)
        tree.file("control", write=function)
        tree.file("settings", store=function)
        with export.refuses(code):
            export.open(export.find(b"file"), os.O_RDONLY, 0)
        with export.refuses(code):
            export.getattr(export.find(b"file"))
        with export.opened(export.find(b"control"), os.O_WRONLY) as file, export.refuses(code):
            export.write(file, 0, ViewBuffers.of(b"x"))
        file, _ = export.open(export.find(b"settings"), os.O_WRONLY, 0)
        export.put(file, 0, b"x")
        with export.refuses(code):
            export.close_file(file)
        export.close_file(file)
        for name in ("file", "control", "settings"):
            tree.root.remove(name)
    assert len([record for record in caplog.records if record.exc_info]) == 4


def test_answers_that_come_later(tree: SynthDriver, export: Subject) -> None:
    def later(value: Any) -> Completion[Any]:
        completion: Completion[Any] = Completion()
        threading.Timer(0.01, completion.set_result, (value,)).start()
        return completion

    stored: list[bytes] = []

    def store(data: bytes) -> Completion[None]:
        stored.append(data)
        return later(None)

    tree.file("file", read=lambda: later("slow"), store=store)
    tree.file("control", write=lambda _: later(None))
    node = export.find(b"file")
    assert export.content(node) == b"slow"
    assert export.attributes(node).size == 4
    export.fill(node, b"S")
    assert stored == [b"Slow"]
    export.fill(export.find(b"control"), b"command")


def test_what_is_removed_stays_readable(tree: SynthDriver, export: Subject) -> None:
    folder = tree.folder("folder")
    folder.file("file", read=b"content")
    node, above = export.find(b"folder", b"file"), export.find(b"folder")
    with export.opened(node) as file, export.opened(above) as listed:
        tree.root.remove("folder")
        assert not export.exists(b"folder")
        assert export.get(file, 0, 10) == b"content"
        assert export.readdir(listed, 0) == []
    assert export.attributes(node).nlink == 0
    with export.refuses(errno.ENOENT):
        export.walk(above, [b".."])


def test_an_emulator_and_its_guest() -> None:
    state = {"running": True}
    tree = SynthDriver()
    tree.file("status", read=lambda: "running\n" if state["running"] else "stopped\n")

    def control(command: bytes) -> None:
        if command.strip() not in {b"start", b"stop"}:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        state["running"] = command.strip() == b"start"

    tree.file("control", write=control)
    with pair(tree) as both:
        path = both.mount.path
        assert path("status").read_text() == "running\n"
        path("control").write_text("stop\n")
        assert path("status").read_text() == "stopped\n"
        with pytest.raises(OSError, match="Invalid argument"):
            path("control").write_text("dance\n")
        tree.folder("counters").file("exits", read=lambda: "5\n")
        assert path("counters/exits").read_text() == "5\n"


def test_options() -> None:
    assert registry.create("synth,readonly").readonly
    assert registry.lookup("synth").summary
    with pytest.raises(ConfigError, match="path: is known to QEMU, but a synth export has no folder on the host"):
        registry.create("synth,path=/srv")
    with pytest.raises(ConfigError, match="colour"):
        registry.create("synth,colour=red")


def test_where_a_file_is() -> None:
    """For the dialects of 9P whose stat holds the name."""
    tree = SynthDriver()
    folder = tree.folder("folder")
    file = folder.file("file", read="text")
    assert tree.place(tree.root) == (tree.root, b"/")
    assert tree.place(folder) == (tree.root, b"folder")
    assert tree.place(file) == (folder, b"file")
    folder.remove("file")
    assert tree.place(file)[0] is None
