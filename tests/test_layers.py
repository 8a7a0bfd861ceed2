"""The layers of docs/architecture.md: imports point one way, and a module holds one thing of a readable size."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "pyvirtfs"
MODULES = sorted(PACKAGE.rglob("*.py"))
MAX_LINES = 600

# What each layer may import of pyvirtfs, besides itself and `errors`.
BELOW_DEVICE = {"syscalls", "memory", "fsdev", "p9", "pci", "virtio"}
ALLOWED = {
    "errors": set[str](),
    "_version": set[str](),
    "syscalls": set[str](),
    "memory": {"syscalls"},
    "pci": set[str](),
    "virtio": {"memory", "pci"},
    "fsdev": {"memory", "syscalls"},
    "p9": {"fsdev", "memory"},
    "virtio9p": BELOW_DEVICE,
    "guest": {"memory", "p9", "pci", "virtio", "virtio9p"},  # of virtio9p the declaration of its configuration space
    "testing": {*BELOW_DEVICE, "guest", "virtio9p"},
    "cli": {*BELOW_DEVICE, "guest", "testing", "virtio9p", "_version", "__init__"},
    "__main__": {"cli"},
    "__init__": {*BELOW_DEVICE, "virtio9p", "_version"},
}
# Of the device side, the guest sees declarations and the machine's parts that are no device, but no logic of a device.
GUEST_SEES = {
    "pyvirtfs.p9.call",
    "pyvirtfs.p9.client",
    "pyvirtfs.p9.constants",
    "pyvirtfs.p9.frames",
    "pyvirtfs.p9.messages",
    "pyvirtfs.p9.results",
    "pyvirtfs.pci",
    "pyvirtfs.pci.layout",
    "pyvirtfs.virtio.features",
    "pyvirtfs.virtio.layout",
}
CLIENT_SEES = {f"pyvirtfs.p9.{name}" for name in ("call", "client", "constants", "frames", "messages", "results")}


def imports(path: Path) -> set[str]:
    """The modules of pyvirtfs that a module imports, those for type checkers included."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None and node.level == 0:
            for alias in node.names:
                inner = PACKAGE.parent / Path(*node.module.split("."), alias.name)
                is_module = inner.with_suffix(".py").exists() or inner.is_dir()
                found.add(f"{node.module}.{alias.name}" if is_module else node.module)
    return {name for name in found if name.split(".")[0] == "pyvirtfs"}


def layer(module: str) -> str:
    """The layer that a module of pyvirtfs belongs to."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_one_way(path: Path) -> None:
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    seen = imports(path)
    assert {layer(module) for module in seen} - {own, "errors"} <= ALLOWED[own]
    if own == "guest":
        assert {m for m in seen if layer(m) in {"p9", "pci", "virtio"}} <= GUEST_SEES
    if own == "p9" and path.stem in {"call", "client", "frames", "results"}:
        assert seen - {"pyvirtfs.errors"} <= CLIENT_SEES  # not the lowered codec: a second opinion


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_modules_are_of_a_readable_size(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= MAX_LINES
