"""p9fs (PyPI), a client that shares no code with this package and speaks all three dialects, on a TCP port."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyvirtfs.fsdev.local import LocalDriver
from pyvirtfs.loop import Loop
from pyvirtfs.p9.dialects import DIALECTS
from pyvirtfs.stream import Server, TcpListener

SPOKEN = {dialect.name.decode() for dialect in DIALECTS}
PROGRAM = """
import json, sys
import p9fs
port, version = sys.argv[1:]
fs = p9fs.P9FileSystem("127.0.0.1", int(port), "nobody", version=version)
told = {"names": sorted(name.strip("/") for name in fs.ls("", detail=False))}
told["text"] = fs.cat("file").decode()
fs.mkdir("made")
with fs.open("made/new", "wb") as file:
    file.write(bytes(range(250)) * 1000)
told["info"] = {key: fs.info("made/new")[key] for key in ("type", "size")}
told["same"] = fs.cat("made/new") == bytes(range(250)) * 1000
fs.rm("made/new")
told["left"] = fs.ls("made")
try:
    fs.cat("missing")
except Exception:
    told["missing"] = True
print(json.dumps(told))
"""

pytestmark = pytest.mark.skipif(importlib.util.find_spec("p9fs") is None, reason="p9fs is not installed")


@pytest.fixture
def port(export: Path) -> Iterator[int]:
    """Where the export is served, by a thread."""
    listener = TcpListener()
    driver = LocalDriver(export)
    loop = Loop()
    loop.servers.append(Server(driver, listener))
    thread = threading.Thread(target=loop.run)
    thread.start()
    yield listener.port
    loop.stop()
    thread.join(10)
    loop.close()
    driver.close()


@pytest.mark.parametrize("version", ["9P2000.L", "9P2000.u", "9P2000"])
def test_p9fs(version: str, port: int, export: Path) -> None:
    if version not in SPOKEN:
        pytest.skip(f"{version} is not spoken")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(port), version], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "names": ["file"],
        "text": "Hi Guest\n",
        "info": {"type": "file", "size": 250_000},
        "same": True,
        "left": [],
        "missing": True,
    }
    assert [path.name for path in (export / "made").iterdir()] == []
