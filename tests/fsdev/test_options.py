from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvirtfs.errors import ConfigError
from pyvirtfs.fsdev.options import (
    Option,
    OptionTable,
    check_identifier,
    format_size,
    parse_bool,
    parse_device,
    parse_fsdev,
    parse_mode,
    parse_number,
    parse_pairs,
    parse_size,
    parse_virtfs,
    unknown,
)

TABLE = OptionTable(
    "fsdev driver 'x'",
    (
        Option(name="path", required=True),
        Option(name="readonly", type="bool", default=False),
        Option(name="fmode", type="mode", default=0o600),
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


@pytest.mark.parametrize("text", ["1k", "10G", "5bytes"])
def test_a_count_takes_no_suffix(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_number("iops", text)
    assert str(caught.value).startswith(f"iops: {text!r} is not a number: there is no suffix (decimal, ")


def test_the_largest_number() -> None:
    assert parse_number("n", "18446744073709551615") == parse_number("n", "0xFFFFFFFFFFFFFFFF") == (1 << 64) - 1
    for text in ("18446744073709551616", "9" * 5000, "0x1" + "0" * 16, "0" + "7" * 5000):
        with pytest.raises(ConfigError, match=r"^n: '[0-9x]{1,32}'(\.\.\.)? is more than 18446744073709551615$"):
            parse_number("n", text)


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        ("0", 0),
        ("0k", 0),
        ("4096", 4096),
        ("7b", 7),
        ("7B", 7),
        ("1k", 1024),
        ("3K", 3 << 10),
        ("3m", 3 << 20),
        ("3M", 3 << 20),
        ("10G", 10 << 30),
        ("1t", 1 << 40),
        ("2P", 2 << 50),
        ("7e", 7 << 60),
        ("0x1000", 4096),
        ("0XfF", 255),
        ("0x1b", 27),  # the digit, no suffix
        ("9223372036854775807", (1 << 63) - 1),
        ("0x7fffffffffffffff", (1 << 63) - 1),
    ],
)
def test_size(text: str, nbytes: int) -> None:
    assert parse_size("size", text) == nbytes


@pytest.mark.parametrize(
    "text",
    [
        "", "k", "-1", "+1", "1.5G", "1,5G", "1kb", "1KiB", "1 k", " 1", "1z", "0x", "0x1g", "0x10k", "1_0", "1e3",
        "50%", "1\u212a", "\u0661", "1k\n",
    ],
)  # fmt: skip
def test_bad_size_names_what_is_allowed(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_size("space_hard_limit", text)
    message = str(caught.value)
    assert message.startswith(f"space_hard_limit: {text!r} is not a size: a whole number, with b, k, M, G, T, P or E ")
    assert "\n" not in message


@pytest.mark.parametrize(
    "text", ["8e", "8E", "9223372036854775808", "0x8000000000000000", "9" * 5000, "9" * 5000 + "k"]
)
def test_size_beyond_any_file(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^size: '[0-9a-zA-Z]{1,32}'(\.\.\.)? is more than 9223372036854775807$"):
        parse_size("size", text)


@pytest.mark.parametrize(("text", "instead"), [("010", "10"), ("0644k", "644k"), ("00", "0")])
def test_a_size_is_never_octal(text: str, instead: str) -> None:
    with pytest.raises(ConfigError, match=f"^size: '{text}' begins with 0: write {instead}, sizes are never octal$"):
        parse_size("size", text)


@given(st.integers(0, (1 << 63) - 1))
def test_sizes_round_trip(nbytes: int) -> None:
    assert parse_size("size", format_size(nbytes)) == parse_size("size", hex(nbytes)) == nbytes


def test_sizes_are_shown_short() -> None:
    shown = [format_size(nbytes) for nbytes in (0, 1, 1023, 1024, 1536, 3 << 20, 1 << 30, 7 << 60)]
    assert shown == ["0", "1", "1023", "1k", "1536", "3M", "1G", "7E"]


@pytest.mark.parametrize(
    ("text", "mode"), [("0", 0), ("0644", 0o644), ("0777", 0o777), ("0x1a4", 0o644), ("384", 0o600), ("7", 7)]
)
def test_mode(text: str, mode: int, caplog: pytest.LogCaptureFixture) -> None:
    assert parse_mode("fmode", text) == mode
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("644", "644 is decimal here: write 0644 for octal"),
        ("755", "755 is decimal here: write 0755 for octal"),
        ("1777", "1777 is decimal here: write 01777 for octal"),
        ("512", "512 is decimal here: write 0512 for octal"),
        ("888", "write it in octal, 0 in front"),
        ("0x200", "write it in octal, 0 in front"),
    ],
)
def test_a_mode_that_nobody_means(text: str, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_mode("fmode", text)
    assert str(caught.value) == f"fmode: '{text}' is no mode from 0 to 0777: {hint}"


@pytest.mark.parametrize("text", ["rw", "", "-1", "9" * 5000, "0o644", "0888"])
def test_no_mode(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^fmode: "):
        parse_mode("fmode", text)


@pytest.mark.parametrize(
    ("text", "mode", "warning"),
    [
        ("420", 0o644, "fmode: 420 is decimal here, which is 0644: write 0420 if octal is meant"),
        ("400", 0o620, "fmode: 400 is decimal here, which is 0620: write 0400 if octal is meant"),
        ("06777", 0o777, "fmode: of 06777 only the permissions count: 0777"),
        ("0100640", 0o640, "fmode: of 0100640 only the permissions count: 0640"),
    ],
)
def test_a_mode_that_may_be_meant(text: str, mode: int, warning: str, caplog: pytest.LogCaptureFixture) -> None:
    """As QEMU takes it, but not without a word."""
    assert parse_mode("fmode", text) == mode
    assert caplog.messages == [warning]


def test_an_unknown_name_that_looks_like_a_known_one() -> None:
    known = ["security_model", "readonly", "fmode", "dmode"]
    assert str(unknown("securitymodel", "x has no such option", known)) == (
        "securitymodel: x has no such option; did you mean security_model?"
    )
    assert unknown("Read-Only", "no", known).problem == "no; did you mean readonly?"
    assert unknown("mode", "no", known).problem == "no; did you mean fmode or dmode?"
    assert unknown("mode", "no", known).choices == ()
    assert unknown("colour", "no", known, ["all"]).choices == ("all",)
    assert str(unknown("colour", "no", known)) == "colour: no (choose from security_model, readonly, fmode, dmode)"


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
        ({"path": "/x", "pth": "/y"}, "pth", ["no such option; did you mean path?"]),
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
        ({"path": "/x", "read_only": "1"}, "choose from"),
        ({"readonly": "on", "b": "on"}, "written twice"),
    ],
)
def test_table_errors_say_nothing_that_does_not_help(pairs: dict[str, str], word: str) -> None:
    with pytest.raises(ConfigError) as caught:
        TABLE.parse(pairs)
    assert word not in str(caught.value)


def test_a_group_of_options_is_one_choice_but_for_who_looks_into_it() -> None:
    table = OptionTable("x", [Option(name=name) for name in ("path", "slow.a", "slow.b", "last")])
    for wrong, choices in (
        ("other", ("path", "slow.*", "last")),
        ("slow.nothing_like_it", ("path", "slow.a", "slow.b", "last")),
    ):
        with pytest.raises(ConfigError) as caught:
            table.parse({wrong: "1"})
        assert caught.value.choices == choices


def test_the_options_of_a_table() -> None:
    assert TABLE.describe() == [
        "path=<str> - (required)",
        "readonly=<on|off> - (default: off)",
        "fmode=<mode> - (default: 0600)",
        "model=<a|b>",
    ]
    assert Option(name="size", type="size", default=3 << 20).describe() == "size=<size> - (default: 3M)"
    assert Option(name="names", type="number", default=1024).describe() == "names=<number> - (default: 1024)"
    assert TABLE.help() == [*TABLE.describe(), "<mode>: octal with 0 in front: 0644"]
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
