"""XML whose elements know where they stand, so that a file can be changed and everything else in it stays as it is.

Entities and document types are refused (`defusedxml`): libvirt's documents have none, and those of an attacker do.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final
from xml.etree.ElementTree import ParseError  # an exception; the parser is another one

from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import DefusedXMLParser

from pyvirtfs.errors import ConfigError

# XML 1.0, 3.1: a ">" inside of an attribute's value ends nothing.
_START_TAG: Final = re.compile(rb"""<[^\s>/"']+(?:[^>"']|"[^"]*"|'[^']*')*>""")
_NAME: Final = re.compile(rb"<([\w.-]+:|)[\w.-]+[\s/>]")
_WIDE: Final = (b"\xff\xfe", b"\xfe\xff", b"\x00<", b"<\x00")


@dataclass(slots=True)
class Element:
    """An element of a document."""

    name: str
    """In a namespace: ``{namespace}name``."""
    attributes: dict[str, str]
    line: int
    """The first one is 1."""
    start: int
    """Where it begins, in bytes from the beginning of the document."""
    content: int
    """Where its start tag ends."""
    close: int = 0
    """Where its end tag begins; an empty-element tag (``<a/>``) has none, and then it is `content`."""
    end: int = 0
    """Where it ends."""
    text: str = ""
    """All text directly inside of it."""
    children: list[Element] = field(default_factory=list)

    def all(self, name: str) -> Iterator[Element]:
        """The children of that name, in their order."""
        return (child for child in self.children if child.name == name)

    def first(self, name: str) -> Element | None:
        """The first child of that name."""
        return next(self.all(name), None)


class _Builder:
    """What the parser tells, as elements. Python's own parser calls the methods by these names."""

    def __init__(self, document: bytes) -> None:
        self.document = document
        self.position: Any = None
        """The expat parser."""
        self.open: list[Element] = []
        self.root: Element | None = None

    def start(self, name: str, attributes: dict[str, str]) -> None:
        at = self.position.CurrentByteIndex
        tag = _START_TAG.match(self.document, at)
        assert tag is not None  # expat knows no encoding in which ASCII is something else, but for UTF-16
        element = Element(name, attributes, self.position.CurrentLineNumber, at, tag.end())
        if self.open:
            self.open[-1].children.append(element)
        else:
            self.root = element
        self.open.append(element)

    def end(self, _name: str) -> None:
        element = self.open.pop()
        if self.document.endswith(b"/>", element.start, element.content):
            element.close = element.end = element.content
        else:
            element.close = self.position.CurrentByteIndex
            element.end = self.document.index(b">", element.close) + 1

    def data(self, text: str) -> None:
        self.open[-1].text += text

    def close(self) -> Element | None:
        return self.root


def parse(document: bytes, name: str) -> Element:
    """The root element of an XML document.

    Args:
        document: It, in UTF-8 or another encoding that has ASCII as its part.
        name: What to call it in messages.

    Raises:
        ConfigError: It is not well-formed (with line and column), or has a document type or an entity of its own.
    """
    if document.startswith(_WIDE):
        raise ConfigError(name, "is written in UTF-16, and libvirt's XML is UTF-8")
    builder = _Builder(document)
    # forbid_dtd is about what it says; with it there can be no entities but those of XML itself.
    parser: Any = DefusedXMLParser(target=builder, forbid_dtd=True, forbid_entities=True, forbid_external=True)
    builder.position = parser.parser
    try:
        parser.feed(document)
        root: Element | None = parser.close()
    except DefusedXmlException:
        line = builder.position.CurrentLineNumber
        raise ConfigError(
            name, f"line {line}: a document type or an entity, which libvirt's XML does not have"
        ) from None
    except ParseError as error:
        line, column = error.position
        reason = str(error).rpartition(": line ")[0] or str(error)
        raise ConfigError(name, f"line {line}, column {column + 1}: no well-formed XML: {reason}") from None
    except (LookupError, ValueError) as error:
        raise ConfigError(name, f"no well-formed XML: {error}") from None
    assert root is not None
    return root


def prefix(document: bytes, element: Element) -> str:
    """What its namespace is called where it stands, with the colon: ``qemu:``, or nothing.

    Raises:
        ConfigError: It is called something that is not ASCII.
    """
    found = _NAME.match(document, element.start)
    if found is None:
        raise ConfigError("xmlns", f"line {element.line}: the prefix is not ASCII")
    return found[1].decode("ascii")


def edited(document: bytes, edits: list[tuple[int, int, str]]) -> bytes:
    """The document with parts of it replaced.

    Args:
        document: It.
        edits: Begin and end of each part, and what comes in its place. They do not overlap. What is not ASCII becomes a
            character reference, so the encoding does not matter.
    """
    parts, at = [], 0
    for start, end, text in sorted(edits):
        parts += [document[at:start], text.encode("ascii", "xmlcharrefreplace")]
        at = end
    return b"".join([*parts, document[at:]])
