"""What has to change in a libvirt domain so that its 9p devices are vfio-user clients: the parts, or all of its XML.

libvirt has no element for such a device, so it comes by ``<qemu:commandline>`` ("QEMU command-line passthrough" in the
documentation of libvirt's QEMU driver). The server reads and writes the guest's RAM, so that has to be shared.
"""

from __future__ import annotations

import html
import re
from collections.abc import Sequence
from typing import Final

from pyvirtfs.errors import ConfigError
from pyvirtfs.vmm.libvirt import Domain
from pyvirtfs.vmm.libvirt_xml import Element, edited, prefix

NAMESPACE: Final = "http://libvirt.org/schemas/domain/qemu/1.0"
"""Of elements with the prefix ``qemu:``."""
_COMMANDLINE: Final = f"{{{NAMESPACE}}}commandline"
_SOURCE: Final = "<source type='memfd'/>"
_ACCESS: Final = "<access mode='shared'/>"
_BACKING: Final = f"<memoryBacking>\n  {_SOURCE}\n  {_ACCESS}\n</memoryBacking>"


def shares_memory(domain: Domain) -> bool:
    """Whether libvirt lets other processes map all of the guest's RAM.

    Raises:
        ConfigError: A NUMA cell or a memory device says for itself that they cannot.
    """
    cpu = domain.root.first("cpu")
    numa = None if cpu is None else cpu.first("numa")
    cells = [] if numa is None else [cell.attributes.get("memAccess") for cell in numa.all("cell")]
    if "private" in cells:
        raise ConfigError("memAccess", "a NUMA cell is 'private', and has to be 'shared' (or to leave it out)")
    for module in domain.devices.all("memory"):  # one that leaves it out has its cell's, or the domain's
        if module.attributes.get("access") == "private":
            written = f"<memory model={module.attributes.get('model', '')!r}> in line {module.line}"
            raise ConfigError("access", f"{written} is 'private', and has to be 'shared' (or to leave it out)")
    backing = domain.root.first("memoryBacking")
    access = None if backing is None else backing.first("access")
    return (access is not None and access.attributes.get("mode") == "shared") or (bool(cells) and None not in cells)


def parts(domain: Domain, attachments: Sequence[str]) -> str:
    """What somebody has to do to the domain, as comments and pieces of XML.

    Args:
        domain: The domain.
        attachments: What is to stand behind QEMU's `-device`, for each file system.

    Raises:
        ConfigError: As `shares_memory`.
    """
    lines = [_comment(f"In the domain {domain.name}, which needs QEMU 10.1 or newer, remove:")]
    lines += [_comment(f"  <filesystem> in line {one.element.line}, target {one.target}") for one in domain.filesystems]
    if shares_memory(domain):
        lines.append(_comment("its memory is shared already; add before </domain>:"))
    else:
        lines += [_comment("add (memory that is not shared cannot be reached):"), _BACKING]
        lines.append(_comment("add before </domain>:"))
    return "\n".join([*lines, _commandline("qemu:", attachments, f" xmlns:qemu='{NAMESPACE}'")])


def changed(domain: Domain, attachments: Sequence[str]) -> bytes:
    """The domain's XML without its 9p file systems, with what takes their places; all else byte for byte as it was.

    Args:
        domain: The domain.
        attachments: As for `parts`.

    Raises:
        ConfigError: As `shares_memory`.
    """
    document = domain.document
    edits = [(*_line_of(document, one.element), "") for one in domain.filesystems]
    if not shares_memory(domain):
        edits += _sharing(domain)
    commandline = domain.root.first(_COMMANDLINE)
    if commandline is None:
        text = _commandline("qemu:", attachments, f" xmlns:qemu='{NAMESPACE}'")
        edits.append((domain.root.close, domain.root.close, f"{_indented(text)}\n"))
    else:
        name = prefix(document, commandline)
        edits.append(_within(commandline, f"{name}commandline", _arguments(name, attachments)))
    return edited(document, edits)


def _commandline(name: str, attachments: Sequence[str], declaration: str) -> str:
    lines = [f"<{name}commandline{declaration}>", *_arguments(name, attachments), f"</{name}commandline>"]
    return "\n".join(lines)


def _arguments(name: str, attachments: Sequence[str]) -> list[str]:
    return [
        f"  <{name}arg value='{_quoted(value)}'/>" for attachment in attachments for value in ("-device", attachment)
    ]


def _sharing(domain: Domain) -> list[tuple[int, int, str]]:
    """Edits that make the memory shared; RAM in a file of the host stays there."""
    backing = domain.root.first("memoryBacking")
    if backing is None:
        at = domain.devices.start
        return [(at, at, f"{_indented(_BACKING).lstrip()}\n  ")]
    edits, missing = [], []
    for name, text in (("source", _SOURCE), ("access", _ACCESS)):
        found = backing.first(name)
        if found is None:
            missing.append(f"  {text}")
        elif name == "access" or found.attributes.get("type") == "anonymous":
            edits.append((found.start, found.end, text))
    if missing:
        edits.append(_within(backing, "memoryBacking", missing))
    return edits


def _within(element: Element, name: str, lines: Sequence[str]) -> tuple[int, int, str]:
    """The edit that puts lines at the beginning of an element."""
    text = _indented("\n".join(lines))
    if element.close == element.end:  # an empty-element tag, which has no inside
        return element.content - len("/>"), element.content, f">\n{text}\n  </{name}>"
    return element.content, element.content, f"\n{text}"


def _line_of(document: bytes, element: Element) -> tuple[int, int]:
    """Where an element begins and ends, with the whole line if nothing else is in it."""
    start = element.start
    while document[start - 1 : start] in {b" ", b"\t"}:
        start -= 1
    if document[start - 1 : start] == b"\n" and document[element.end : element.end + 1] == b"\n":
        return start, element.end + 1
    return element.start, element.end


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.split("\n"))


def _quoted(text: str) -> str:
    """As it stands between single quotes; JSON is full of the double ones."""
    text = html.escape(text, quote=False).replace("'", "&apos;")
    return text.encode("ascii", "xmlcharrefreplace").decode("ascii")


def _comment(text: str) -> str:
    """A comment, in which two hyphens must not stand together (XML 1.0, 2.5)."""
    text = "".join(char if char.isprintable() else "?" for char in text)
    return f"<!-- {re.sub('-(?=-)', '- ', text)} -->"
