from __future__ import annotations

from pyvirtfs.testing import Message, RecordingSink


def test_it_records_and_hands_on() -> None:
    behind = RecordingSink()
    sink = RecordingSink(behind)
    assert not sink.level
    sink.msix(1, 0xFEE00000, 0x30)
    sink.intx(True)
    for one in (sink, behind):
        assert one.messages == [Message(1, 0xFEE00000, 0x30)]
        assert one.vectors == [1]
        assert one.levels == [True]
    sink.clear()
    assert (sink.messages, sink.level) == ([], True)
