"""What the README shows is what happens."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("source", re.findall(r"<!-- run -->\n```python\n(.*?)```", README, re.DOTALL))
def test_examples_run(source: str) -> None:
    done = subprocess.run([sys.executable, "-c", source], check=False, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_make_help_is_in_columns() -> None:
    done = subprocess.run(
        ["make", "--no-print-directory", "help"], cwd=ROOT, check=True, capture_output=True, text=True, timeout=60
    )
    lines = [re.fullmatch(r"(  make [a-z-]+ {2,})\S.*", line) for line in done.stdout.splitlines()]
    assert len({line and len(line[1]) for line in lines}) == 1
    assert {"make help", "make test-all", "make bench-guest"} <= {line[1].strip() for line in lines if line}


def test_the_speed_table_is_there() -> None:
    speed = README.split("## Speed")[1].split("\n## ")[0]
    groups = set(re.findall(r"^\| (.*?) \| device, depth \d+ \| [\d.]+ \|", speed, re.MULTILINE))
    assert {"getattr", "walk+clunk", "read 4 KiB", "create+clunk+unlink"} <= groups
    assert "Linux" in speed


def facts(transcript: str) -> list[str]:
    """The transcript without what differs from run to run: names of folder and user, times, counts."""
    transcript = re.sub(r"/\S+/pyvirtfs-demo-\w+", "FOLDER", transcript)
    transcript = re.sub(r"(-rw-r--r-- 1) \d+ \d+", r"\1 UID GID", transcript)
    transcript = re.sub(r"\b[A-Z][a-z]{2} [ \d]\d \d\d:\d\d\b", "TIME", transcript)
    transcript = re.sub(r"\d+ (requests|kicks|interrupts)", r"N \1", transcript)
    return transcript.strip().splitlines()


def test_demo_transcript() -> None:
    found = re.search(r"<!-- demo -->\n```text\n(.*?)```", README, re.DOTALL)
    assert found is not None
    command = [sys.executable, "-m", "pyvirtfs", "demo"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert facts(done.stdout) == facts(found[1])
