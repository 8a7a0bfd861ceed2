"""The lowered codec against the construct declarations that it is made from, message by message."""

from __future__ import annotations

from typing import Any

import pytest

from pyvirtfs.p9 import codec
from pyvirtfs.p9 import constants as p9
from pyvirtfs.p9.messages import HEADER, MESSAGES

QID = (0x80, 1, 4711)
SAMPLES: dict[int, tuple[Any, ...]] = {
    p9.TGETATTR: (1, 0x7FF),
    p9.TWALK: (0, 1, (b"usr", b"share", b"doc")),
    p9.TREAD: (1, 4096, 65536),
    p9.TLOCK: (1, 1, 0, 0, 4096, 1234, b"guest"),
    p9.RGETATTR: (0x7FF, QID, 0o100644, 0, 0, 1, 0, 5, 4096, 8, *(1700000000, 1) * 4, 0, 0),
    p9.RWALK: ((QID, QID, QID),),
    p9.RLERROR: (2,),
}


def _parse(data: bytes) -> Any:
    header = HEADER.parse(data)
    return header, MESSAGES[header.type].body.parse(data[7:])


@pytest.mark.parametrize("number", SAMPLES, ids=lambda number: MESSAGES[number].name)
@pytest.mark.parametrize("how", ["construct", "lowered"])
def test_decode(benchmark: Any, number: int, how: str) -> None:
    """Bytes to fields."""
    name = MESSAGES[number].name
    data = codec.encode(number, 1, *SAMPLES[number])
    benchmark.group = f"codec {name}"
    benchmark.extra_info["floor"] = how == "construct"
    benchmark.extra_info["label"] = f"decode, {how}"
    decode = _parse if how == "construct" else codec.decode
    benchmark.pedantic(decode, (data,), rounds=200, iterations=100 if how == "construct" else 1000, warmup_rounds=5)


@pytest.mark.parametrize("number", SAMPLES, ids=lambda number: MESSAGES[number].name)
def test_encode(benchmark: Any, number: int) -> None:
    """Fields to bytes, lowered."""
    benchmark.group = f"codec {MESSAGES[number].name}"
    benchmark.extra_info["label"] = "encode, lowered"
    arguments = (1, *SAMPLES[number])
    benchmark.pedantic(codec.encoder(number), arguments, rounds=200, iterations=1000, warmup_rounds=5)
