from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvirtfs.errors import ConfigError
from pyvirtfs.vmm.libvirt_xml import Element, edited, parse, prefix

DOCUMENT = b"""<?xml version='1.0'?>
<!-- before -->
<a one='>' xmlns:q='space'>
 <q:b two="/>"/>text &lt; <![CDATA[<c>]]>
 <!-- <c/> --><?c?>
 <c>first</c  ><c/>
</a>
"""


def test_elements_know_where_they_stand() -> None:
    root = parse(DOCUMENT, "file")
    assert (root.name, root.attributes, root.line) == ("a", {"one": ">"}, 3)
    first, second, third = root.children
    assert DOCUMENT[first.start : first.end] == b"""<q:b two="/>"/>"""
    assert (first.name, first.content, first.close, first.line) == ("{space}b", first.end, first.end, 4)
    assert DOCUMENT[second.start : second.end] == b"<c>first</c  >"
    assert DOCUMENT[second.content : second.close] == b"first"
    assert (second.text, third.text, third.line) == ("first", "", 6)
    assert DOCUMENT[root.close : root.end] == b"</a>"
    assert "text < <c>" in root.text
    assert list(root.all("c")) == [second, third]
    assert root.first("c") is second
    assert root.first("d") is None


def test_a_byte_order_mark_and_other_encodings() -> None:
    document = b"\xef\xbb\xbf<a><b/></a>"
    found = parse(document, "file").children[0]
    assert document[found.start : found.end] == b"<b/>"
    document = "<?xml version='1.0' encoding='latin1'?><a>ä<b c='ö'/></a>".encode("latin-1")
    found = parse(document, "file").children[0]
    assert (document[found.start : found.end], found.attributes) == ("<b c='ö'/>".encode("latin-1"), {"c": "ö"})


def test_depth_is_no_matter() -> None:
    depth = 100_000
    element: Element | None = parse(b"<a>" * depth + b"</a>" * depth, "file")
    found = 0
    while element is not None:
        element, found = element.first("a"), found + 1
    assert found == depth


@pytest.mark.parametrize(
    ("document", "line"),
    [
        (b"", "file: line 1, column 1: no well-formed XML: no element found"),
        (b"hello", "file: line 1, column 1: no well-formed XML: syntax error"),
        (b"<a>\n <b></a>", "file: line 2, column 7: no well-formed XML: mismatched tag"),
        (b"<a/><b/>", "file: line 1, column 5: no well-formed XML: junk after document element"),
        (b"<a b='1' b='2'/>", "file: line 1, column 10: no well-formed XML: duplicate attribute"),
        (b"<x:a/>", "file: line 1, column 1: no well-formed XML: unbound prefix"),
        (b"<a>\xff</a>", "file: line 1, column 4: no well-formed XML: not well-formed (invalid token)"),
        (b"<a>&b;</a>", "file: line 1, column 4: no well-formed XML: undefined entity"),
        (b"<!DOCTYPE a>\n<a/>", "file: line 1: a document type or an entity, which libvirt's XML does not have"),
        (b"<!DOCTYPE a [<!ENTITY b 'c'>]><a>&b;</a>", "file: line 1: a document type or an entity"),
        (b"<!DOCTYPE a SYSTEM 'file:///etc/passwd'><a/>", "file: line 1: a document type or an entity"),
        (b"<?xml version='1.0' encoding='none'?><a/>", "file: no well-formed XML: unknown encoding: none"),
        (b"<?xml version='1.0' encoding='utf-7'?><a/>", "file: no well-formed XML: multi-byte encodings are not"),
        (
            b"<?xml version='1.0' encoding='cp037'?>" + "<a/>".encode("cp037"),
            "file: line 1, column 31: no well-formed XML: unknown",
        ),
        ("<a/>".encode("utf-16"), "file: is written in UTF-16"),
        ("<a/>".encode("utf-16-le"), "file: is written in UTF-16"),
    ],
)
def test_what_is_refused(document: bytes, line: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(document, "file")
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)


@given(st.binary(max_size=80) | st.text("<>/!?a= '\"&;[]-x:\n", max_size=40).map(str.encode))
def test_any_bytes_are_a_document_or_a_line(document: bytes) -> None:
    try:
        root = parse(document, "file")
    except ConfigError:
        return
    assert document[root.start : root.end].startswith(b"<")
    assert document[root.start : root.end].endswith(b">")


def test_prefixes() -> None:
    document = "<a xmlns='s' xmlns:q='t' xmlns:ä='u'><q:b/><b/><ä:b/></a>".encode()
    with_prefix, without, other = parse(document, "file").children
    assert (prefix(document, with_prefix), prefix(document, without)) == ("q:", "")
    with pytest.raises(ConfigError, match="xmlns: line 1: the prefix is not ASCII"):
        prefix(document, other)


def test_edits() -> None:
    assert edited(b"0123456789", [(7, 8, "x"), (2, 4, ""), (0, 0, "ä"), (10, 10, "!")]) == b"&#228;01456x89!"
    assert edited(b"abc", []) == b"abc"
