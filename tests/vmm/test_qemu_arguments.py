from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvirtfs.errors import ConfigError
from pyvirtfs.fsdev.options import parse_pairs
from pyvirtfs.vmm.qemu_arguments import (
    WITH_VALUE,
    Argument,
    as_text,
    changed,
    escaped,
    make,
    pairs_of,
    parse,
    typed,
    with_pair,
    words,
)


@given(st.lists(st.one_of(st.text(), st.sampled_from(["-m", "--append", "-S", "-virtfs", "-", "--"]))))
def test_what_is_parsed_goes_back_to_the_same_words(line: list[str]) -> None:
    assert words(parse(line)) == line


def test_options_take_the_next_word_whatever_it_looks_like() -> None:
    found = parse(["-append", "-virtfs x", "--m", "1G", "-S", "disk.img", "-unknown", "-device", "-", "-virtfs"])
    assert [(one.option, one.value) for one in found] == [
        ("append", "-virtfs x"),
        ("m", "1G"),
        ("S", None),
        (None, None),
        ("unknown", None),
        ("device", "-"),
        ("virtfs", None),
    ]
    assert found[3].words == ("disk.img",)


def test_options_with_a_value() -> None:
    assert {"virtfs", "fsdev", "device", "object", "m", "M", "machine", "mem-path", "append", "L"} <= WITH_VALUE
    assert WITH_VALUE.isdisjoint({"S", "s", "h", "snapshot", "nographic", "enable-kvm", "daemonize", "mem-prealloc"})


def test_changed_options_keep_their_dashes() -> None:
    (argument,) = parse(["--machine", "q35"])
    assert changed(argument, "pc") == Argument(("--machine", "pc"), "machine", "pc")
    assert make("device", "x") == Argument(("-device", "x"), "device", "x")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("q35", "q35,share=on"),
        ("q35,", "q35,share=on"),
        ("path=a,,", "path=a,,,share=on"),
        ("path=a,,,", "path=a,,,share=on"),
        ("", "share=on"),
        (",", "share=on"),
    ],
)
def test_one_pair_more(text: str, told: str) -> None:
    assert with_pair(text, "share", "on") == told


@given(st.dictionaries(st.from_regex(r"[a-z]{1,5}", fullmatch=True), st.text(max_size=8), min_size=1), st.text())
def test_one_pair_more_is_read_back(pairs: dict[str, str], value: str) -> None:
    text = ",".join(f"{key}={escaped(one)}" for key, one in pairs.items())
    pairs.pop("extra", None)
    assert parse_pairs(with_pair(text, "extra", value)) == {**pairs, "extra": value}


def test_pairs() -> None:
    (argument,) = parse(["-machine", "q35,accel=kvm"])
    assert pairs_of(argument, "type") == {"type": "q35", "accel": "kvm"}
    with pytest.raises(ConfigError, match=r"^-machine: an option has no name"):
        pairs_of(make("machine", "q35,=x"), "type")


@pytest.mark.parametrize(
    ("text", "name", "properties"),
    [
        ("e1000,addr=5", "e1000", {"addr": "5"}),
        ("addr=5,driver=e1000", "e1000", {"addr": "5"}),
        ('{"driver":"e1000","addr":"5","multifunction":true}', "e1000", {"addr": "5", "multifunction": True}),
        ("""{'driver':'a"b\\'c', 'x': 1}""", "a\"b'c", {"x": 1}),
    ],
)
def test_devices_in_either_syntax(text: str, name: str, properties: dict[str, object]) -> None:
    found = typed(make("device", text), "driver")
    assert found == (name, properties, text.startswith("{"))


@pytest.mark.parametrize("text", ["", "help", "?", "e1000,help", "e1000,?", "x=1", ",=", "{", '{"driver":5}', "{]"])
def test_devices_that_are_left_to_qemu(text: str) -> None:
    assert typed(make("device", text), "driver") is None


@pytest.mark.parametrize(("value", "text"), [(True, "on"), (False, "off"), (5, "5"), ("a,b", "a,b"), (None, "null")])
def test_json_as_text(value: object, text: str) -> None:
    assert as_text(value) == text
