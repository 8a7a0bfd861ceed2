"""A Debian root file system in a folder, made by debootstrap: for guests whose root is on 9p."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType

import pytest

PROVISION = Path(__file__).parent / "provision"
SECONDS = 420  # for debootstrap, which takes 30 s where the mirror is near
UNUSED = ("var/cache/apt", "var/lib/apt/lists")


def load_provision() -> ModuleType:
    """The script as a module."""
    loader = SourceFileLoader("provision", str(PROVISION))
    spec = spec_from_loader("provision", loader)
    assert spec is not None
    module = module_from_spec(spec)
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        loader.exec_module(module)
    finally:
        sys.dont_write_bytecode = before
    return module


def _make(provision: ModuleType, work: Path, root: Path) -> None:
    """Fetch debootstrap as `provision` fetches everything, and let it fill a folder."""
    apt = provision.Apt(work / "apt")
    apt("apt-get", "download", "debootstrap", cwd=apt.archives)
    provision.run("dpkg-deb", "-x", *apt.archives.glob("debootstrap_*.deb"), work / "tool")
    proxy = provision.run("apt-config", "shell", "proxy", "Acquire::http::Proxy").strip()
    words = provision.shlex.split(proxy)
    environment = {"http_proxy": words[0].partition("=")[2]} if words else {}
    # In a mount namespace of its own: what debootstrap mounts goes with it, however it ends.
    provision.run(
        "unshare", "--mount", "sh", work / "tool/usr/sbin/debootstrap", "--variant=minbase",
        f"--keyring={provision.KEYRING}", provision.RELEASE, root, provision.Apt._mirror(),
        seconds=SECONDS, DEBOOTSTRAP_DIR=str(work / "tool/usr/share/debootstrap"), **environment,
    )  # fmt: skip
    for name in UNUSED:
        shutil.rmtree(root / name, ignore_errors=True)
        (root / name).mkdir()


def pristine(kernel: str) -> Path:
    """The folder, made if need be; nobody may write to it. `kernel` is where `provision` has put things."""
    if os.geteuid() != 0:
        pytest.skip("debootstrap, and owners of files, need root")
    provision = load_provision()
    cache = Path(kernel).parents[1]
    version = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]
    root = cache / f"debian-{provision.RELEASE}-{version}"
    with provision.locked(cache):
        if not root.exists():
            for old in cache.glob("debian-*"):
                remove(old)
            with tempfile.TemporaryDirectory(prefix="tmp.", dir=cache) as folder:
                try:
                    _make(provision, Path(folder), Path(folder) / "root")
                except provision.ProvisionError as failure:
                    reason = f"debian_root: {' '.join(str(failure).split())}"
                    (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(reason)
                (Path(folder) / "root").rename(root)
    return root


def copy(kernel: str, to: Path) -> None:
    """A copy to write to."""
    subprocess.run(["cp", "-a", "--reflink=auto", pristine(kernel), to], check=True, timeout=120)


def remove(folder: Path) -> None:
    """Remove a copy, whatever the guest has put into it."""
    subprocess.run(["rm", "-rf", "--one-file-system", folder], check=True, timeout=120)
