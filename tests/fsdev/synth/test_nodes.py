from __future__ import annotations

import errno
import threading

import pytest

from pyvirtfs.fsdev.synth.nodes import SynthFile, SynthFolder


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/", "a\0b", b"x" * 256, "ä" * 128])
def test_bad_names(name: str) -> None:
    folder = SynthFolder()
    for make in (folder.file, folder.folder, lambda name: folder.symlink(name, "x")):
        with pytest.raises(ValueError, match="cannot be the name"):
            make(name)
    assert folder.names() == []


def test_a_name_is_given_once() -> None:
    folder = SynthFolder()
    first = folder.file("a", read=b"1")
    for make in (folder.file, folder.folder):
        with pytest.raises(ValueError, match="there is 'a' already"):
            make("a")
    assert folder["a"] is first
    folder.remove("a")
    assert folder.file(b"a") is not first
    with pytest.raises(KeyError):
        folder.remove("missing")


@pytest.mark.parametrize(
    ("read", "write", "store", "mode"),
    [(True, False, False, 0o444), (False, True, False, 0o200), (True, True, False, 0o644), (True, False, True, 0o644)],
)
def test_modes_say_what_there_is(read: bool, write: bool, store: bool, mode: int) -> None:
    made = SynthFolder().file(
        "x",
        read=b"" if read else None,
        write=(lambda _: None) if write else None,
        store=(lambda _: None) if store else None,
    )
    assert made.mode == mode
    assert made.writable is (write or store)
    assert SynthFolder().file("x", mode=0o600).mode == 0o600


def test_one_way_to_write() -> None:
    with pytest.raises(ValueError, match="either write or store"):
        SynthFolder().file("x", write=lambda _: None, store=lambda _: None)


def test_content_is_text_or_a_function() -> None:
    folder = SynthFolder()
    assert folder.file("bytes", read=b"x").content() == b"x"
    assert folder.file("str", read="ä").content() == "ä".encode()
    assert folder.file("function", read=lambda: bytearray(b"y")).content() == b"y"
    assert folder.file("none").content() == b""
    with pytest.raises(TypeError):
        folder.file("number", read=5)  # type: ignore[arg-type]


def test_the_version_follows_the_content() -> None:
    texts = ["a", "a", "b", "b", "a"]
    file = SynthFolder().file("x", read=lambda: texts.pop(0))
    versions = []
    while texts:
        file.content()
        versions.append(file.version)
    assert versions == [1, 1, 2, 2, 3]
    file.version = 0xFFFFFFFF
    file.changed()
    assert file.version == 1


def test_removing_a_folder_removes_what_is_in_it() -> None:
    top = SynthFolder()
    folder = top.folder("folder")
    file = folder.file("file")
    version = top.version
    top.remove("folder")
    assert (folder.nlink, file.nlink, folder.parent, file.parent) == (0, 0, None, None)
    assert top.version != version
    with pytest.raises(OSError, match="No such file") as caught:
        top.find(b"folder")
    assert caught.value.errno == errno.ENOENT
    with pytest.raises(OSError, match="too long"):
        top.find(b"x" * 256)


def test_cookies_are_not_used_again() -> None:
    folder = SynthFolder()
    for name in "abc":
        folder.file(name)
    second = folder.after(0)[1][0]
    folder.remove("b")
    folder.file("b")
    assert [node.name for _, node in folder.after(second)] == [b"c", b"b"]
    assert [node.name for _, node in folder.after(0)] == [b"a", b"c", b"b"]


def test_threads_may_add_and_remove_while_others_list() -> None:
    folder, errors = SynthFolder(), list[Exception]()

    def work(number: int) -> None:
        try:
            for turn in range(200):
                folder.file(f"{number}.{turn}")
                assert isinstance(folder[f"{number}.{turn}"], SynthFile)
                if turn % 2:
                    folder.remove(f"{number}.{turn}")
                folder.after(0)
        except Exception as error:  # noqa: BLE001
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert len(folder.names()) == 400
