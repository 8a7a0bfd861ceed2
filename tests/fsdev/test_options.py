from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvirtfs.errors import ConfigError
from pyvirtfs.fsdev.options import (
    Option,
    OptionTable,
    check_identifier,
    parse_bool,
    parse_device,
    parse_fsdev,
    parse_number,
    parse_pairs,
    parse_virtfs,
)

TABLE = OptionTable(
    "fsdev driver 'x'",
    (
        Option(name="path", required=True),
        Option(name="readonly", type="bool", default=False),
        Option(name="fmode", type="number", default=0o600),
        Option(name="model", type="choice", choices=("a", "b"), refused={"c": "is not supported yet"}),
    ),
    refused={"throttling.*": "throttling is not supported yet", "old": "it is gone"},
)


@pytest.mark.parametrize(
    ("text", "first", "expected"),
    [
        ("", None, {}),
        ("local,path=/x", "fsdriver", {"fsdriver": "local", "path": "/x"}),
        ("path=/a,,b,readonly", None, {"path": "/a,b", "readonly": "on"}),
        ("path=/a,,,,b", None, {"path": "/a,,b"}),
        ("path=/a,,,readonly", None, {"path": "/a,", "readonly": "on"}),
        ("a=1,b=2,a=3", None, {"b": "2", "a": "3"}),
        ("a=1=2", None, {"a": "1=2"}),
        ("a=", None, {"a": ""}),
        ("a=1,", None, {"a": "1"}),
        ("fsdriver=local", "fsdriver", {"fsdriver": "local"}),
        ("a,,b,c=1", "first", {"first": "a,b", "c": "1"}),
    ],
)
def test_pairs(text: str, first: str | None, expected: dict[str, str]) -> None:
    assert parse_pairs(text, first) == expected


@pytest.mark.parametrize("text", ["=x", "a=1,=x"])
def test_pair_without_key(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_pairs(text)


@given(st.dictionaries(st.from_regex(r"[a-z][a-z_.]*", fullmatch=True), st.text(), max_size=5))
def test_pairs_round_trip(pairs: dict[str, str]) -> None:
    text = ",".join(f"{key}={value.replace(',', ',,')}" for key, value in pairs.items())
    assert parse_pairs(text) == pairs


@given(st.text())
def test_any_text_parses_or_is_a_config_error(text: str) -> None:
    try:
        pairs = parse_pairs(text, "first")
    except ConfigError:
        return
    assert all(pairs)


@pytest.mark.parametrize(("text", "value"), [("on", True), ("off", False), ("yes", True), ("n", False)])
def test_bool(text: str, value: bool) -> None:
    assert parse_bool("readonly", text) is value


@pytest.mark.parametrize("text", ["", "maybe", "ON", "1"])
def test_bad_bool_names_option_value_choices(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^readonly: .*choose from on, off") as caught:
        parse_bool("readonly", text)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize(("text", "value"), [("0", 0), ("600", 600), ("0600", 0o600), ("0x1F", 31), ("0Xa", 10)])
def test_number(text: str, value: int) -> None:
    assert parse_number("fmode", text) == value


@pytest.mark.parametrize("text", ["", "-1", "+1", "08", "0x", "1_0", " 1", "\u0661", "1e3", "abc"])
def test_bad_number(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^fmode: "):
        parse_number("fmode", text)


@pytest.mark.parametrize("text", ["", "1a", "-a", "a b", "é", "a/b", "a\n"])
def test_bad_identifier(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^id: "):
        check_identifier("id", text)


def test_table_fills_defaults() -> None:
    assert TABLE.parse({"path": "/x"}) == {"path": "/x", "readonly": False, "fmode": 0o600, "model": None}
    assert TABLE.parse({"path": "/x", "readonly": "on", "fmode": "0644", "model": "b"}) == {
        "path": "/x", "readonly": True, "fmode": 0o644, "model": "b",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("pairs", "option", "words"),
    [
        ({}, "path", ["needs it"]),
        ({"path": "/x", "colour": "red"}, "colour", ["'x'", "no such option", "readonly", "path"]),
        ({"path": "/x", "model": "z"}, "model", ["'z'", "not a known value", "choose from a, b"]),
        ({"path": "/x", "model": "c"}, "model", ["'c'", "not supported yet", "choose from a, b"]),
        ({"path": "/x", "throttling.bps-total": "1"}, "throttling.bps-total", ["known to QEMU", "not supported yet"]),
        ({"path": "/x", "old": "on"}, "old", ["it is gone"]),
        ({"path": "/a", "b c": "on"}, "b c", ["no such option; ", "written twice: path=/a,,b c (choose from path, "]),
        ({"path": "/a,b", "c": "on"}, "c", ["written twice: path=/a,,b,,c (choose"]),
    ],
)
def test_table_errors_name_what_is_wrong(pairs: dict[str, str], option: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        TABLE.parse(pairs)
    assert caught.value.option == option
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("pairs", "word"),
    [
        ({"path": "/x", "throttling.iops": "1"}, "choose from"),
        ({"path": "/x", "old": "on"}, "choose from"),
        ({"path": "/x", "b": "red"}, "written twice"),
        ({"readonly": "on", "b": "on"}, "written twice"),
    ],
)
def test_table_errors_say_nothing_that_does_not_help(pairs: dict[str, str], word: str) -> None:
    with pytest.raises(ConfigError) as caught:
        TABLE.parse(pairs)
    assert word not in str(caught.value)


def test_a_group_of_options_is_one_choice_but_for_who_looks_into_it() -> None:
    table = OptionTable("x", [Option(name=name) for name in ("path", "slow.a", "slow.b", "last")])
    for wrong, choices in (("pth", ("path", "slow.*", "last")), ("slow.c", ("path", "slow.a", "slow.b", "last"))):
        with pytest.raises(ConfigError) as caught:
            table.parse({wrong: "1"})
        assert caught.value.choices == choices


def test_the_options_of_a_table() -> None:
    assert TABLE.describe() == [
        "path=<str> - (required)",
        "readonly=<on|off> - (default: off)",
        "fmode=<number> - (default: 384)",
        "model=<a|b>",
    ]
    assert Option(name="path", required=True, help="The folder").describe() == "path=<str> - The folder (required)"


def test_fsdev() -> None:
    options = parse_fsdev("local,id=fs0,path=/x,security_model=none")
    assert (options.driver, options.id) == ("local", "fs0")
    assert options.values == {"path": "/x", "security_model": "none"}
    assert parse_fsdev("local,path=/x").id is None


@pytest.mark.parametrize(
    ("text", "option"),
    [("", "-fsdev"), ("id=a", "-fsdev"), ("=x", "-fsdev"), ("local,id=1", "id"), ("local,id=", "id")],
)
def test_bad_fsdev(text: str, option: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_fsdev(text)
    assert caught.value.option == option


def test_fsdev_id_required() -> None:
    with pytest.raises(ConfigError, match=r"^id: "):
        parse_fsdev("local,path=/x", id_required=True)


def test_virtfs() -> None:
    options = parse_virtfs("local,path=/x,mount_tag=my tag,security_model=none")
    assert options.mount_tag == "my tag"
    assert options.fsdev.id == "my tag"
    assert options.fsdev.values == {"path": "/x", "security_model": "none"}
    assert parse_virtfs("local,path=/x,mount_tag=t,id=f").fsdev.id == "f"
    assert parse_virtfs("local,path=/x,mount_tag=").mount_tag == ""  # the device says what is wrong with it


@pytest.mark.parametrize(
    ("text", "option"), [("mount_tag=t", "-virtfs"), ("=x", "-virtfs"), ("local,path=/x", "mount_tag")]
)
def test_bad_virtfs(text: str, option: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_virtfs(text)
    assert caught.value.option == option


def test_device() -> None:
    options = parse_device("virtio-9p-pci,fsdev=fs0,mount_tag=t,help")
    assert options.driver == "virtio-9p-pci"
    assert options.properties == {"fsdev": "fs0", "mount_tag": "t", "help": "on"}
    with pytest.raises(ConfigError, match=r"^-device: "):
        parse_device("")
