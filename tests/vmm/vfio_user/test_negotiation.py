"""VERSION. The names in brackets are those of libvfio-user's tests of the same behaviour."""

from __future__ import annotations

import contextlib
import json
import struct
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvirtfs.vmm.vfio_user.negotiation import Terms, negotiate

VERSION = 1


def body(text: bytes = b"", *, major: int = 0, minor: int = 1) -> bytes:
    return struct.pack("<HH", major, minor) + text


def capabilities(**given: Any) -> bytes:
    return body(json.dumps({"capabilities": given}).encode() + b"\0")


def refuse(data: bytes, match: str) -> None:
    with pytest.raises(OSError, match=match) as caught:
        negotiate(data)
    assert caught.value.errno == 22


def reply_of(data: bytes) -> tuple[int, int, dict[str, Any]]:
    _, reply = negotiate(data)
    assert reply[-1] == 0
    return (*struct.unpack_from("<HH", reply), json.loads(reply[4:-1])["capabilities"])


# --- what a connection does with it ---


def refused_and_dropped(bench: Any, data: bytes, command: int = VERSION) -> None:
    bench.raw.refused(command, data)
    assert bench.hangup is not None


@pytest.mark.parametrize("nbytes", [0, 1, 3])
def test_short_write(make_bench: Callable[..., Any], nbytes: int) -> None:
    refused_and_dropped(make_bench(hello=False), body()[:nbytes])


@pytest.mark.parametrize("size", [0x00100021, 0xFFFFFFFF])
def test_long_write(make_bench: Callable[..., Any], size: int) -> None:
    bench = make_bench(hello=False)
    bench.raw.send(VERSION, body(), size=size)
    bench.raw.pump()
    assert (bench.raw.receive().error, bench.hangup) == (22, f"a message of {size} bytes")


@pytest.mark.parametrize("command", [0, 2, 4, 9, 13, 14, 99, 0xFFFF])
def test_bad_command(make_bench: Callable[..., Any], command: int) -> None:
    refused_and_dropped(make_bench(hello=False), body(b"{}\0"), command)


@pytest.mark.parametrize("major", [1, 0x100, 0xFFFF])
def test_invalid_major(make_bench: Callable[..., Any], major: int) -> None:
    refused_and_dropped(make_bench(hello=False), body(b"{}\0", major=major))


def test_descriptors_with_the_version(make_bench: Callable[..., Any]) -> None:
    bench = make_bench(hello=False)
    bench.raw.refused(VERSION, body(b"{}\0"), fds=[0])
    assert bench.hangup is not None


def test_a_second_version(bench: Any) -> None:
    bench.raw.refused(VERSION, body(b"{}\0"))
    assert bench.hangup is None
    assert bench.raw.read(7, 0, 2) == b"\x34\x12"


def test_destroying(bench: Any) -> None:
    """The server ends with a client connected."""
    bench.connection.close()
    assert bench.raw.is_closed


# --- JSON ---


def test_invalid_json_missing_nul() -> None:
    refuse(body(b"{}"), "NUL")
    refuse(body(b'{"capabilities":{}}'), "NUL")


@pytest.mark.parametrize("text", [b'{"capabilities":{}', b"{"])
def test_invalid_json_missing_closing_brace(text: bytes) -> None:
    refuse(body(text + b"\0"), "JSON")


@pytest.mark.parametrize("text", [b'{"capabilities:{}}', b'{"capabilities":{"max_msg_fds:8}}'])
def test_invalid_json_missing_closing_quote(text: bytes) -> None:
    refuse(body(text + b"\0"), "JSON")


@pytest.mark.parametrize("text", [b"[" * 100_000, b'"\xff"', b"\0{}", b"{}{}", b"9" * 5000, b"\xff\xfe", b" "])
def test_other_garbage(text: bytes) -> None:
    refuse(body(text + b"\0"), r"JSON|object")


@pytest.mark.parametrize("value", ["true", "1", "null", "[]", '"x"'])
def test_invalid_json_bad_capabilities_object(value: str) -> None:
    refuse(body(b'{"capabilities":' + value.encode() + b"}\0"), "no object")
    refuse(body(value.encode() + b"\0"), "no JSON object")


@pytest.mark.parametrize("value", ["x", -1, 1025, None, True, 1.5, [8]])
def test_invalid_json_bad_max_fds(value: Any) -> None:
    refuse(capabilities(max_msg_fds=value), "max_msg_fds")


@pytest.mark.parametrize("value", [True, 1, "x", [], None])
def test_invalid_json_bad_migration_object(value: Any) -> None:
    refuse(capabilities(migration=value), "migration")


@pytest.mark.parametrize("value", ["x", 4095, 0, -4096, True])
def test_invalid_json_bad_pgsize(value: Any) -> None:
    refuse(capabilities(migration={"pgsize": value}), "pgsize")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("max_data_xfer_size", 0),
        ("max_data_xfer_size", -1),
        ("max_data_xfer_size", "1"),
        ("max_dma_maps", "x"),
        ("pgsizes", {}),
        ("write_multiple", 1),
        ("write_multiple", "true"),
    ],
)
def test_other_capabilities_of_a_wrong_type(key: str, value: Any) -> None:
    refuse(capabilities(**{key: value}), key)


# --- agreement ---


def test_valid_negotiate_no_json() -> None:
    terms, reply = negotiate(body())
    assert terms == Terms(1, 1 << 20, write_multiple=False)
    assert reply_of(body()) == (0, 1, {"max_msg_fds": 16, "max_data_xfer_size": 1 << 20})
    assert len(reply) <= 214  # QEMU has no room for a longer one


@pytest.mark.parametrize("text", [b"{}\0", b"\0", b'{"capabilities":{}}\0', b'{"other":1}\0'])
def test_valid_negotiate_empty_json(text: bytes) -> None:
    assert negotiate(body(text)) == negotiate(body())


def test_valid_negotiate_json() -> None:
    """As QEMU asks, with keys that nobody knows; the answer fits into as many bytes as QEMU sent."""
    asked = {
        "pgsizes": 4096,
        "max_msg_fds": 16,
        "max_dma_maps": 65535,
        "max_data_xfer_size": 1048576,
        "migration": {"max_bitmap_size": 1 << 28, "pgsize": 4096},
        "write_multiple": True,
        "unknown": {"anything": [1]},
    }
    terms, reply = negotiate(capabilities(**asked))
    assert terms == Terms(1, 1 << 20, write_multiple=True)
    assert len(reply) <= 214
    _, _, answer = reply_of(capabilities(**asked))
    assert answer == {"max_msg_fds": 16, "max_data_xfer_size": 1048576, "write_multiple": True}


@pytest.mark.parametrize(("asked", "agreed"), [(0, 0), (1, 1), (2, 1), (0xFFFF, 1)])
def test_the_smaller_minor_version(asked: int, agreed: int) -> None:
    assert reply_of(body(minor=asked))[:2] == (0, agreed)
    assert negotiate(body(minor=asked))[0].minor == agreed


@pytest.mark.parametrize(("asked", "agreed"), [(1, 1), (4096, 4096), (1 << 20, 1 << 20), (1 << 40, 1 << 20)])
def test_transfers_are_no_larger_than_the_client_takes(asked: int, agreed: int) -> None:
    assert negotiate(capabilities(max_data_xfer_size=asked))[0].max_transfer == agreed


@given(st.binary(max_size=300))
def test_anything_is_an_answer_or_refused(data: bytes) -> None:
    with contextlib.suppress(OSError):  # the errno is asked for above
        assert negotiate(data)[1][-1] == 0


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["max_msg_fds", "migration", "pgsize", "write_multiple", "capabilities"]) | st.text(), inner)))  # fmt: skip  # noqa: E501
def test_any_json_is_an_answer_or_refused(document: Any) -> None:
    for text in (document, {"capabilities": document}):
        with contextlib.suppress(OSError):
            assert negotiate(body(json.dumps(text).encode() + b"\0"))[1][-1] == 0
