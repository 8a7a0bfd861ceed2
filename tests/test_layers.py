"""The shape of the source: imports point one way, modules are of a readable size, and each has its tests."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "pyvirtfs"
ROOT = PACKAGE.parent
MODULES = sorted(PACKAGE.rglob("*.py"))
FOLDERS = ("pyvirtfs", "tests", "benchmarks", "examples")
SOURCES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
MAX_LINES = 600

# What each layer may import of pyvirtfs, besides itself and `errors`.
BELOW_DEVICE = {"syscalls", "memory", "fsdev", "p9", "pci", "virtio"}
ALLOWED = {
    "errors": set[str](),
    "_version": set[str](),
    "loop": set[str](),
    "unix_socket": set[str](),
    "syscalls": set[str](),
    "memory": {"syscalls"},
    "pci": set[str](),
    "virtio": {"memory", "pci"},
    "fsdev": {"memory", "syscalls"},
    "p9": {"fsdev", "memory"},
    "virtio9p": BELOW_DEVICE,
    "guest": {"memory", "p9", "pci", "virtio", "virtio9p", "vmm"},  # of the last two: declarations
    "testing": {*BELOW_DEVICE, "guest", "virtio9p", "vmm"},
    "stream": {"fsdev", "memory", "p9", "syscalls", "unix_socket"},
    "vmm": {"fsdev", "loop", "memory", "pci", "syscalls", "unix_socket", "virtio"},
    "cli": {*BELOW_DEVICE, "guest", "loop", "stream", "testing", "virtio9p", "vmm", "_version", "__init__"},
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
    "pyvirtfs.vmm.vfio_user.messages",
}
# Two modules of the device side hold more than declarations: what the guest may take from them, and where.
GUEST_TAKES = {
    ("pyvirtfs.virtio9p", "channel.py"): {"Config"},
    ("pyvirtfs.pci", "machine.py"): {"HostBridge", "PciFunction"},
}
WITHOUT_TESTS = {
    "__main__.py": "two lines, which every test runs that starts `python -m pyvirtfs`",
    "_version.py": "one number",
    "syscalls/_libc.py": "generated; test_declarations generates it again and compares",
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
        assert {m for m in seen if layer(m) in {"p9", "pci", "virtio", "vmm"}} <= GUEST_SEES
    if own == "p9" and path.stem in {"call", "client", "frames", "results"}:
        assert seen - {"pyvirtfs.errors"} <= CLIENT_SEES  # not the lowered codec: a second opinion


def names_from(path: Path, module: str) -> set[str]:
    """The names that a module imports from another one."""
    nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
    return {alias.name for node in nodes if node.module == module for alias in node.names}


@pytest.mark.parametrize("module", ["pyvirtfs.virtio9p", "pyvirtfs.pci"])
@pytest.mark.parametrize("path", sorted((PACKAGE / "guest").glob("*.py")), ids=lambda path: path.name)
def test_the_guest_imports_few_names_of_the_device_side(path: Path, module: str) -> None:
    names = names_from(path, module) - {"layout"}  # which is a module, see GUEST_SEES
    assert names <= GUEST_TAKES.get((module, path.name), set())
    assert (module in imports(path)) is bool(names)  # not the module itself, with everything in it


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_each_module_has_its_tests(path: Path) -> None:
    where = path.relative_to(PACKAGE)
    if where.name == "__init__.py" or str(where) in WITHOUT_TESTS:
        return
    assert (ROOT / "tests" / where.parent / f"test_{where.name.lstrip('_')}").is_file()


@pytest.mark.parametrize("name", WITHOUT_TESTS)
def test_modules_without_tests_exist(name: str) -> None:
    assert (PACKAGE / name).is_file()


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_modules_are_of_a_readable_size(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= MAX_LINES
