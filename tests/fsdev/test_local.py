from __future__ import annotations

import ctypes
import errno
import os
import shutil
import subprocess
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyvirtfs.errors import ConfigError
from pyvirtfs.fsdev import create
from pyvirtfs.fsdev.driver import Lock, LockHolder, SetAttributes
from pyvirtfs.fsdev.local import LocalDriver
from pyvirtfs.fsdev.registry import check
from pyvirtfs.memory.buffers import ViewBuffers


@pytest.mark.parametrize(
    ("options", "option", "words"),
    [
        ("", "path", ["needs it"]),
        ("path={top}/none", "security_model", ["needs it", "passthrough", "none"]),
        ("path={top}/nothing,security_model=none", "path", ["nothing", "does not exist"]),
        ("path={top}/file,security_model=none", "path", ["file", "not a folder"]),
        ("path=,security_model=none", "path", ["does not exist"]),
        (
            "path={top},security_model=squash",
            "security_model",
            ["'squash'", "not a known value", "passthrough, mapped, mapped-xattr, mapped-file, none"],
        ),
        ("path={top},security_model=none,multidevs=never", "multidevs", ["'never'", "remap, forbid, warn"]),
        ("path={top},security_model=none,writeout=later", "writeout", ["'later'", "immediate"]),
        ("path={top},security_model=none,readonly=maybe", "readonly", ["'maybe'", "on, off"]),
        ("path={top},security_model=none,fmode=0600", "fmode", ["mapped-file", "security_model is 'none'"]),
        ("path={top},security_model=passthrough,dmode=0700", "dmode", ["mapped-xattr", "is 'passthrough'"]),
        ("path={top},security_model=passthrough,fmode=0600", "fmode", ["mapped-file", "is 'passthrough'"]),
        ("path={top},security_model=mapped,fmode=rw", "fmode", ["'rw'", "not a number"]),
        (
            "path={top},security_model=none,throttling.bps-total=9,throttling.bps-total-max=8",
            "throttling.bps-total-max",
            ["8", "throttling.bps-total=9"],
        ),
        ("path={top},security_model=none,gidmap=0:0:9+8:50:1", "gidmap", ["0:0:9", "8:50:1", "overlap"]),
        ("path={top},security_model=none,throttling.iops-size=1", "throttling.iops-size", ["1 needs a limit"]),
        ("path={top},security_model=none,pathh=1", "pathh", ["'local'", "no such option; did you mean path?"]),
        ("path={top},security_model=mapped,fmode=644", "fmode", ["644 is decimal", "write 0644"]),
        ("path={top},security_model=none,space_hard_limit=1x", "space_hard_limit", ["'1x'", "k, M, G"]),
    ],
)
def test_bad_options(tmp_path: Path, no_leak: None, options: str, option: str, words: list[str]) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError) as caught:
        create(f"local,{options.format(top=tmp_path)}")
    assert caught.value.option == option
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize(
    ("options", "option"),
    [
        ("path=/nowhere", "security_model"),
        ("path=/nowhere,security_model=none,fmode=0600", "fmode"),
        ("path=/nowhere,security_model=mapped,uidmap=0:0:1", "uidmap"),
        ("path=/nowhere,security_model=none,squash=1,gidmap=0:0:1", "squash"),
        ("path=/nowhere,security_model=none,throttling.bps-total-max=1", "throttling.bps-total-max"),
        ("path=/nowhere,security_model=none,space_hard_limit=1,space_soft_limit=2", "space_soft_limit"),
    ],
)
def test_contradictions_show_without_a_look_at_the_machine(options: str, option: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check(f"local,{options}")
    assert caught.value.option == option


def test_what_is_checked_without_a_look_at_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the folder nor privileges."""
    monkeypatch.setattr("pyvirtfs.fsdev.capabilities.effective_capabilities", lambda: 0)
    check("local,path=/nowhere,security_model=passthrough,uidmap=0:0:5,space_hard_limit=1G")


@pytest.mark.parametrize(
    ("options", "warning"),
    [
        ("security_model=mapped,fmode=0640", "fmode: has no effect with readonly=on: no file is made that would "),
        ("security_model=mapped,dmode=0", "dmode: has no effect with readonly=on: no folder is made that would "),
        ("security_model=none,device_nodes=on", "device_nodes: has no effect with readonly=on: no guest makes any"),
        ("security_model=none,space_hard_limit=1G", "space_hard_limit: has no effect with readonly=on: nobody comes "),
    ],
)
def test_what_has_no_effect_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, options: str, warning: str
) -> None:
    create(f"local,path={tmp_path},readonly=on,{options}").close()
    (message,) = caplog.messages
    assert message.startswith(warning)
    caplog.clear()
    check(f"local,path={tmp_path},readonly=off,{options}")
    assert caplog.messages == []


def test_what_others_generate_is_not_worth_a_word(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    options = "writeout=immediate,device_nodes=off,space_soft_limit=1G,throttling.bps-write=1M,multidevs=remap"
    create(f"local,path={tmp_path},security_model=none,readonly=on,{options}").close()
    assert caplog.messages == []


def test_bad_arguments(tmp_path: Path, no_leak: None) -> None:
    with pytest.raises(ConfigError, match="security_model"):
        LocalDriver(tmp_path, "squash")
    with pytest.raises(ConfigError, match="fmode"):
        LocalDriver(tmp_path, "none", fmode=0o600)
    with pytest.raises(ConfigError, match="multidevs"):
        LocalDriver(tmp_path, multidevs="never")
    with pytest.raises(ConfigError, match="writeout"):
        LocalDriver(tmp_path, writeout="never")
    with pytest.raises(ConfigError, match="path"):
        LocalDriver("nul\0byte")


def test_good_options(tmp_path: Path, no_leak: None) -> None:
    driver = create(f"local,id=x,path={tmp_path},security_model=none,readonly,writeout=immediate,multidevs=forbid")
    assert driver.readonly
    driver.close()
    driver.close()


def test_the_export_may_be_named_through_a_symbolic_link(tmp_path: Path, no_leak: None) -> None:
    (tmp_path / "real").mkdir()
    os.symlink("real", tmp_path / "link")
    driver = LocalDriver(tmp_path / "link")
    assert driver.attach(b"", 0)[1].path == (tmp_path / "real").stat().st_ino
    driver.close()


def test_close_releases_what_guests_left(tmp_path: Path, no_leak: None) -> None:  # H046
    (tmp_path / "file").write_bytes(b"x")
    for _ in range(50):
        driver = LocalDriver(tmp_path)
        top, _ = driver.attach(b"", 0)
        node = driver.walk(top, [b"file"]).node
        assert node is not None
        file, _ = driver.open(node, os.O_RDWR, 0)
        folder, _ = driver.open(top, 0, 0)
        assert driver.readdir(folder, 0)
        driver.close()
        driver.close()
        driver.close_file(file)
        driver.release(node)
        driver.release(top)
        with pytest.raises(OSError, match="Bad file") as caught:
            driver.getattr(node)
        assert caught.value.errno == errno.EBADF


def test_passthrough_needs_capabilities(tmp_path: Path, no_leak: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyvirtfs.fsdev.capabilities.effective_capabilities", lambda: 0)
    with pytest.raises(ConfigError, match=r"^security_model: 'passthrough' needs CAP_CHOWN, .*root.*none"):
        LocalDriver(tmp_path, "passthrough")
    LocalDriver(tmp_path, "passthrough", readonly=True).close()
    LocalDriver(tmp_path, "none").close()


def unprivileged(top: str) -> None:
    """Runs as an ordinary user."""
    os.umask(0o077)
    with pytest.raises(ConfigError, match="CAP_CHOWN"):
        LocalDriver(top, "passthrough")
    driver = LocalDriver(top, "none")
    root, _ = driver.attach(b"", 1000)
    # The owner asked for is overlooked, the mode is not.
    node, file, _ = driver.create(root, b"new", os.O_RDWR, 0o4444, 1000, 1000)
    attributes = driver.getattr(node)[1]
    assert (attributes.mode, attributes.uid) == (0o104444, os.geteuid())
    # Open for writing although the mode forbids it now: ftruncate works in the guest, so it must here.
    assert driver.write(file, 0, ViewBuffers.of(bytearray(b"hello"))) == 5
    driver.setattr(node, SetAttributes(size=2), 1000)
    attributes = driver.getattr(node)[1]
    assert (attributes.size, attributes.mode) == (2, 0o100444)
    driver.close_file(file)
    with pytest.raises(PermissionError):
        driver.setattr(node, SetAttributes(size=1), 1000)
    driver.link(root, node, b"second")
    # A file of somebody else.
    theirs = driver.walk(root, [b"theirs"]).node
    assert theirs is not None
    lock = Lock(True, 0, None, 1, b"")
    one, other = LockHolder(1), LockHolder(2)
    assert driver.lock(theirs, lock, one)  # the host cannot be told, the guests can
    assert not driver.lock(theirs, lock, other)
    assert driver.release_locks(theirs, one) == 1
    file, _ = driver.open(theirs, os.O_RDONLY | os.O_NOATIME, 0)
    driver.close_file(file)
    with pytest.raises(PermissionError):
        driver.open(theirs, os.O_RDWR, 0)
    with pytest.raises(PermissionError):
        driver.setattr(theirs, SetAttributes(mode=0), 0)
    with pytest.raises(PermissionError):
        driver.setattr(theirs, SetAttributes(size=0), 0)
    driver.setattr(theirs, SetAttributes(uid=1, gid=1), 0)  # overlooked
    driver.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="starts as root to become somebody else")
def test_as_an_ordinary_user() -> None:
    top = tempfile.mkdtemp()
    try:
        Path(top, "theirs").write_bytes(b"x")
        os.chmod(top, 0o777)
        readable, writable = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                os.setgroups([])
                os.setresgid(65534, 65534, 65534)
                os.setresuid(65534, 65534, 65534)
                ctypes.CDLL(None).prctl(4, 1)  # PR_SET_DUMPABLE: or /proc/self would be root's
                unprivileged(top)
            except BaseException:  # noqa: BLE001  (the child must never return into pytest)
                os.write(writable, traceback.format_exc().encode())
            os._exit(0)
        os.close(writable)
        with os.fdopen(readable, "rb") as pipe:
            assert pipe.read().decode() == ""
        os.waitpid(child, 0)
    finally:
        shutil.rmtree(top)


@pytest.fixture
def two_mounts(tmp_path: Path) -> Iterator[Path]:
    """A folder with two file systems mounted in it, whose files have the same inode number."""
    if os.geteuid():
        pytest.skip("needs root")
    mounted: list[Path] = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        if subprocess.run(["mount", "-t", "tmpfs", "none", tmp_path / name], check=False).returncode:
            pytest.skip("may not mount")
        mounted.append(tmp_path / name)
        (tmp_path / name / "file").write_text(name)
    yield tmp_path
    for path in mounted:
        subprocess.run(["umount", path], check=True)


def test_multidevs_warn(two_mounts: Path, no_leak: None, caplog: pytest.LogCaptureFixture) -> None:
    """Two files are one for the guest, as with QEMU; but each fid means the file that it was walked to."""
    inode = (two_mounts / "one" / "file").stat().st_ino
    assert inode == (two_mounts / "two" / "file").stat().st_ino
    driver = create(f"local,path={two_mounts},security_model=none,multidevs=warn")
    assert isinstance(driver, LocalDriver)
    top, _ = driver.attach(b"", 0)
    nodes = {name: driver.walk(top, [name, b"file"]) for name in (b"one", b"two")}
    for name, walk in nodes.items():
        assert walk.node is not None
        assert walk.qids[1].path == driver.getattr(walk.node)[0].path == inode
        file, qid = driver.open(walk.node, os.O_RDONLY, 0)
        assert qid.path == inode
        data = bytearray(3)
        assert driver.read(file, 0, ViewBuffers.of(data)) == 3
        assert bytes(data) == name
        folder = driver.walk(top, [name]).node
        assert folder is not None
        listed, _ = driver.open(folder, os.O_RDONLY, 0)
        assert {entry[-1]: entry[0][2] for entry in driver.readdir(listed, 0)} == {
            b".": (two_mounts / os.fsdecode(name)).stat().st_ino, b"..": two_mounts.stat().st_ino, b"file": inode,
        }  # fmt: skip
    (record,) = caplog.records
    assert "multidevs=warn" in record.message
    driver.close()


def test_multidevs_forbid(two_mounts: Path, no_leak: None, caplog: pytest.LogCaptureFixture) -> None:
    """The guest sees ENODEV; the log names each place, once."""
    driver = create(f"local,path={two_mounts},security_model=none,multidevs=forbid")
    assert isinstance(driver, LocalDriver)
    for _ in range(3):
        top, _ = driver.attach(b"", 0)
        for name in (b"one", b"two"):
            with pytest.raises(OSError, match="No such device") as caught:
                driver.walk(top, [name])
            assert caught.value.errno == errno.ENODEV
    assert [record.message for record in caplog.records] == [
        f"{str(two_mounts / name)!r} lies on another file system, and is refused by multidevs=forbid"
        for name in ("one", "two")
    ]
    driver.close()
