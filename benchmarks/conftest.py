"""Fixtures of the benchmarks, and the table that they print: time for one operation beside the floor of its group."""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest


@pytest.fixture
def export() -> Iterator[Path]:
    """A folder on tmpfs, so that no disk is measured; anywhere else if there is no /dev/shm."""
    where = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    path = Path(tempfile.mkdtemp(prefix="pyvirtfs-bench-", dir=where))
    yield path
    shutil.rmtree(path)


def machine() -> str:
    """One line that names the machine, for tables that are quoted elsewhere."""
    model = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.machine(),
    )
    python = platform.python_version()
    return f"{model}, {os.cpu_count()} CPUs, Linux {platform.release()}, Python {python}, numpy {np.__version__}"


def _microseconds(seconds: float) -> str:
    value = seconds * 1e6
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def _row(bench: Any, floors: dict[str, float]) -> str:
    operations = bench.extra_info.get("operations", 1)
    times = sorted(bench.stats.data)
    fast, median = times[len(times) // 10] / operations, times[len(times) // 2] / operations
    beside = bench.extra_info.get("beside")  # measured between the rounds of this very benchmark
    floor = floors.get(bench.group) if beside is None else beside / operations
    ratio = f"{fast / floor:.2f}" if floor else ""
    expected = bench.extra_info.get("expected", "")
    name = bench.extra_info.get("label", bench.name)
    return f"| {bench.group} | {name} | {_microseconds(fast)} | {_microseconds(median)} | {ratio} | {expected} |"


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """One Markdown table: the 10th percentile stands for an undisturbed machine, the median for this one."""
    session = getattr(config, "_benchmarksession", None)
    benches = [bench for bench in getattr(session, "benchmarks", []) if bench.stats.data]
    if not benches:
        return
    floors: dict[str, float] = {}
    for bench in benches:
        if bench.extra_info.get("floor"):
            times = sorted(bench.stats.data)
            floors[bench.group] = times[len(times) // 10] / bench.extra_info.get("operations", 1)
    write = terminalreporter.write_line
    write("")
    write(f"µs for one operation; x is the ratio to the bare system calls of the group. {machine()}")
    write("")
    write("| group | benchmark | p10 | median | x floor | expected |")
    write("|---|---|---:|---:|---:|---|")
    for bench in benches:
        write(_row(bench, floors))
