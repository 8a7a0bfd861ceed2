from __future__ import annotations

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvirtfs.errors import ConfigError
from pyvirtfs.fsdev.driver import NONUNAME
from pyvirtfs.fsdev.ids import MAX_RANGES, OVERFLOW_ID, IdMap, IdRange, SameIds, parse_map, parse_squash, translation

TWO = "0:1000:1+1:100000:65535"


def test_both_ways() -> None:
    ids = parse_map("uidmap", TWO)
    assert ids.ranges == ((0, 1000, 1), (1, 100000, 65535))
    assert [ids.to_host(guest) for guest in (0, 1, 65535)] == [1000, 100000, 165534]
    assert [ids.to_guest(host) for host in (1000, 100000, 165534)] == [0, 1, 65535]


def test_ids_in_no_range() -> None:
    ids = parse_map("uidmap", TWO)
    assert [ids.to_guest(host) for host in (0, 999, 1001, 99999, 165535, 4294967294)] == [OVERFLOW_ID] * 6
    for guest in (65536, 4294967294):
        with pytest.raises(OSError, match=str(guest)) as caught:
            ids.to_host(guest)
        assert caught.value.errno == errno.EINVAL


def test_leave_it_alone_means_that_everywhere() -> None:
    squash, _ = parse_squash("squash", "7")
    for ids in (parse_map("uidmap", TWO), squash, SameIds()):
        assert ids.to_host(NONUNAME) == NONUNAME


@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(1, 9)), min_size=1, max_size=8),
    st.randoms(use_true_random=False),
)
def test_there_and_back(gaps: list[tuple[int, int, int]], random: object) -> None:
    guest = host = 0
    ranges = []
    for guest_gap, host_gap, count in gaps:
        guest += guest_gap
        host += host_gap
        ranges.append(IdRange(guest, host, count))
        guest += count
        host += count
    random.shuffle(ranges)  # type: ignore[attr-defined]
    ids = IdMap(ranges)
    expected = {each.guest + i: each.host + i for each in ranges for i in range(each.length)}
    for number in range(guest + 2):
        if number in expected:
            assert ids.to_host(number) == expected[number]
            assert ids.to_guest(expected[number]) == number
        else:
            with pytest.raises(OSError, match="in no range"):
                ids.to_host(number)
    backwards = {there: here for here, there in expected.items()}
    assert all(ids.to_guest(number) == backwards.get(number, OVERFLOW_ID) for number in range(host + 2))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "'' has nothing in it: write GUEST:HOST:COUNT"),
        ("0:0", "'0:0' is no range"),
        ("0:0:1+", "'0:0:1+' has nothing behind its last +: write GUEST:HOST:COUNT, several with + between them"),
        ("+0:0:1", "'+0:0:1' has nothing before its first +: write"),
        ("0:0:1++5:5:1", "'0:0:1++5:5:1' has nothing between two +: write"),
        ("a:0:1", "'a:0:1' is no range"),
        ("-1:0:1", "'-1:0:1' is no range"),
        ("0:0:0", "0:0:0 has a count of 0 and maps nobody"),
        ("0:0:1+5:6:0", "5:6:0 has a count of 0 and maps nobody"),
        ("010:0:1", "'010:0:1': 010 begins with 0, and ids are decimal: write 10"),
        ("0:00:1", "'0:00:1': 00 begins with 0, and ids are decimal: write 0"),
        ("0:0:01", "'0:0:01': 01 begins with 0, and ids are decimal: write 1"),
        ("9" * 5000 + ":0:1", f"'{'9' * 40}'...: ids are 0 to 4294967294"),
        ("4294967294:0:2", "4294967294:0:2 is no range of ids"),
        ("0:4294967294:2", "0:4294967294:2 is no range of ids"),
        ("0:0:10+9:100:1", "0:0:10 and 9:100:1 overlap: both say what the guest's 9 is"),
        ("20:100:1+0:91:10", "0:91:10 and 20:100:1 overlap: both say what the host's 100 is"),
        ("+".join(f"{i}:{i}:1" for i in range(MAX_RANGES + 1)), "341 ranges, there may be 1 to 340"),
    ],
)
def test_wrong_maps(text: str, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_map("gidmap", text)
    assert str(caught.value).startswith(f"gidmap: {problem}")


def test_the_largest_ids() -> None:
    ids = parse_map("uidmap", "4294967294:4294967294:1+0:0:4294967294")
    assert ids.to_host(4294967294) == ids.to_guest(4294967294) == 4294967294
    assert ids.to_host(0) == 0


def test_squash() -> None:
    users, groups = parse_squash("squash", "1000:100")
    assert [users.to_host(guest) for guest in (0, 5, 4294967294)] == [1000] * 3
    assert groups.to_host(0) == 100
    assert users.to_guest(4711) == 4711
    users, groups = parse_squash("squash", "7")
    assert (users.host, groups.host) == (7, 7)


@pytest.mark.parametrize("text", ["", "root", "1:", ":1", "1:2:3", "-1", "4294967295", "0:4294967295"])
def test_wrong_squash(text: str) -> None:
    with pytest.raises(ConfigError, match="UID or UID:GID"):
        parse_squash("squash", text)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("0100", "'0100': 0100 begins with 0, and ids are decimal: write 100"),
        ("0:007", "'0:007': 007 begins with 0, and ids are decimal: write 7"),
        ("9" * 5000, f"'{'9' * 40}'...: ids are 0 to 4294967294"),
    ],
)
def test_squash_to_what_is_no_id(text: str, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_squash("squash", text)
    assert str(caught.value) == f"squash: {problem}"


def test_within() -> None:
    squash, _ = parse_squash("squash", "7")
    assert squash.within({7})
    assert not squash.within({8})
    assert SameIds().within(set())
    assert parse_map("uidmap", "0:7:1").within({7})
    assert not parse_map("uidmap", "0:7:2").within({7, 9})
    assert parse_map("gidmap", "0:7:2+5:9:1").within([9, 8, 7])
    assert not parse_map("uidmap", "0:0:4294967294").within({0, 1})


def test_what_the_options_mean_together() -> None:
    assert translation(None, None, None) is None
    both = translation("0:7:1", None, None)
    assert both is not None
    assert (both[0].to_host(0), both[1].to_host(0)) == (7, 0)
    both = translation(None, "0:7:1", None)
    assert both is not None
    assert (both[0].to_host(0), both[1].to_host(0)) == (0, 7)
    both = translation(None, None, "5:6")
    assert both is not None
    assert (both[0].to_host(0), both[1].to_host(0)) == (5, 6)
    for uidmap, gidmap in (("0:0:1", None), (None, "0:0:1")):
        with pytest.raises(ConfigError, match=r"^squash: '5' contradicts [ug]idmap=0:0:1"):
            translation(uidmap, gidmap, "5")


def test_whose_it_is_and_who_makes_it() -> None:
    ids = parse_map("uidmap", "0:1000:2+70000:5:1")
    assert [host for host in (4, 5, 6, 999, 1000, 1001, 1002) if ids.holds(host)] == [5, 1000, 1001]
    assert (ids.maker(7), ids.maker(NONUNAME)) == (7, OVERFLOW_ID)
    one, _ = parse_squash("squash", "8")
    assert (one.holds(8), one.holds(9)) == (True, False)
    assert one.to_host(one.maker(NONUNAME)) == one.to_host(one.maker(3)) == 8
    assert SameIds().holds(9)
    assert SameIds().maker(NONUNAME) == NONUNAME
