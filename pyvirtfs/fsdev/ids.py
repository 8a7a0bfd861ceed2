"""Which user and group of the host stands for which of the guest: ``uidmap``, ``gidmap``, ``squash``.

A map is a list of ranges, as user_namespaces(7) has them: ``GUEST:HOST:COUNT``, several with ``+`` between them. An id
of the host that no range holds is shown to the guest as 65534 (the kernel's overflow id), an id of the guest that no
range holds cannot own anything.
"""

from __future__ import annotations

import errno
import re
from bisect import bisect_right
from collections.abc import Collection, Iterable
from typing import Final, NamedTuple, Protocol

from pyvirtfs.errors import ConfigError
from pyvirtfs.fsdev.driver import NONUNAME

OVERFLOW_ID: Final = 65534
"""What the guest sees where the host's id is in no range (/proc/sys/kernel/overflowuid, by default)."""

MAX_RANGES: Final = 340
"""As many as the kernel takes for a user namespace."""

_END: Final = NONUNAME
"""First number that is no id: chown(2) takes it for *leave it alone*."""
_RANGE: Final = re.compile(r"([0-9]+):([0-9]+):([0-9]+)")
_PAIR: Final = re.compile(r"([0-9]+)(?::([0-9]+))?")
_FORM: Final = "write GUEST:HOST:COUNT, several with + between them"
_DIGITS: Final = len(str(_END))


class IdRange(NamedTuple):
    """Ids that follow each other on both sides."""

    guest: int
    host: int
    length: int

    def __str__(self) -> str:
        return f"{self.guest}:{self.host}:{self.length}"


class Ids(Protocol):
    """A translation of ids."""

    def to_host(self, guest: int) -> int:
        """The host's id for one of the guest; 0xFFFFFFFF stays what it is. OSError EINVAL: there is none."""

    def to_guest(self, host: int) -> int:
        """The guest's id for one of the host."""

    def maker(self, guest: int) -> int:
        """The guest's id that owns what is made by one of the guest, who may have none (0xFFFFFFFF)."""

    def holds(self, host: int) -> bool:
        """Whether an id of the host is one that the guest may have."""

    def within(self, hosts: Collection[int]) -> bool:
        """Whether it never leads to other ids of the host than these."""


class IdMap:
    """A translation by ranges.

    Args:
        ranges: In any order.
        option: What the person wrote them behind, for messages.

    Raises:
        ConfigError: There is none, there are too many, one is empty or too large, or two overlap.
    """

    __slots__ = ("_by_guest", "_by_host", "_guests", "_hosts", "ranges")

    def __init__(self, ranges: Iterable[IdRange], option: str = "uidmap") -> None:
        self.ranges = tuple(ranges)
        if not 1 <= len(self.ranges) <= MAX_RANGES:
            raise ConfigError(option, f"{len(self.ranges)} ranges, there may be 1 to {MAX_RANGES}")
        for each in self.ranges:
            if each.length == 0:
                raise ConfigError(option, f"{each} has a count of 0 and maps nobody")
            if each.length < 0 or max(each.guest, each.host) + each.length > _END:
                raise ConfigError(option, f"{each} is no range of ids (0 to {_END - 1}, at least one)")
        self._by_guest = sorted(self.ranges, key=lambda each: each.guest)
        self._by_host = sorted(self.ranges, key=lambda each: each.host)
        for below, above in zip(self._by_guest, self._by_guest[1:], strict=False):
            if below.guest + below.length > above.guest:
                raise ConfigError(option, f"{below} and {above} overlap: both say what the guest's {above.guest} is")
        for below, above in zip(self._by_host, self._by_host[1:], strict=False):
            if below.host + below.length > above.host:
                raise ConfigError(option, f"{below} and {above} overlap: both say what the host's {above.host} is")
        self._guests = [each.guest for each in self._by_guest]
        self._hosts = [each.host for each in self._by_host]

    def to_host(self, guest: int) -> int:
        """The host's id for one of the guest.

        Raises:
            OSError: EINVAL, as chown(2): there is none.
        """
        if guest == NONUNAME:
            return guest
        index = bisect_right(self._guests, guest) - 1
        if index >= 0:
            start, host, count = self._by_guest[index]
            if guest < start + count:
                return host + guest - start
        raise OSError(errno.EINVAL, f"the guest's id {guest} is in no range")

    def to_guest(self, host: int) -> int:
        """The guest's id for one of the host, `OVERFLOW_ID` if it is in no range."""
        index = bisect_right(self._hosts, host) - 1
        if index >= 0:
            guest, start, count = self._by_host[index]
            if host < start + count:
                return guest + host - start
        return OVERFLOW_ID

    def maker(self, guest: int) -> int:
        """The same id; `OVERFLOW_ID` for who has none: not the server's own."""
        return OVERFLOW_ID if guest == NONUNAME else guest

    def holds(self, host: int) -> bool:
        """Whether it is in a range."""
        index = bisect_right(self._hosts, host) - 1
        return index >= 0 and host < self._by_host[index].host + self._by_host[index].length

    def within(self, hosts: Collection[int]) -> bool:
        """Whether its ranges hold no other ids of the host than these."""
        wanted = sum(each.length for each in self.ranges)
        return wanted <= len(hosts) and all(
            host in hosts for each in self.ranges for host in range(each.host, each.host + each.length)
        )


class Squash:
    """Whoever the guest means, it is one id of the host; the guest sees the ids that the host has.

    Args:
        host: That id.
    """

    __slots__ = ("host",)

    def __init__(self, host: int) -> None:
        self.host = host

    def to_host(self, guest: int) -> int:
        """The one id; 0xFFFFFFFF stays what it is."""
        return guest if guest == NONUNAME else self.host

    def to_guest(self, host: int) -> int:
        """The same id."""
        return host

    def maker(self, guest: int) -> int:
        """Somebody: it is one id for all."""
        return 0 if guest == NONUNAME else guest

    def holds(self, host: int) -> bool:
        """Whether it is the one id."""
        return host == self.host

    def within(self, hosts: Collection[int]) -> bool:
        """Whether it is one of these."""
        return self.host in hosts


class SameIds:
    """No translation, for where only users or only groups have one."""

    __slots__ = ()

    def to_host(self, guest: int) -> int:
        """The same id."""
        return guest

    def to_guest(self, host: int) -> int:
        """The same id."""
        return host

    def maker(self, guest: int) -> int:
        """The same id."""
        return guest

    def holds(self, host: int) -> bool:
        """Any id is."""
        del host
        return True

    def within(self, hosts: Collection[int]) -> bool:
        """No restriction: nobody has asked for other ids."""
        del hosts
        return True


def parse_map(option: str, text: str) -> IdMap:
    """Read ``GUEST:HOST:COUNT[+GUEST:HOST:COUNT...]``, in decimal.

    Raises:
        ConfigError: It is not that; or as `IdMap`.
    """
    ranges = []
    for part in text.split("+"):
        if not part:
            raise ConfigError(option, f"{text!r} has nothing {_where_empty(text)}: {_FORM}")
        found = _RANGE.fullmatch(part)
        if found is None:
            raise ConfigError(option, f"{part!r} is no range of ids: {_FORM}")
        ranges.append(IdRange(*(_number(option, part, digits) for digits in found.groups())))
    return IdMap(ranges, option)


def _where_empty(text: str) -> str:
    if not text:
        return "in it"
    return "before its first +" if text.startswith("+") else "between two +" if "++" in text else "behind its last +"


def _number(option: str, part: str, digits: str) -> int:
    """A decimal number, which cannot be taken for an octal one."""
    if digits.startswith("0") and len(digits) > 1:
        number = digits.lstrip("0") or "0"
        raise ConfigError(option, f"{part!r}: {digits} begins with 0, and ids are decimal: write {number}")
    if len(digits) > _DIGITS:  # Python reads no number of thousands of digits
        raise ConfigError(option, f"{part[:40]!r}{'...' * (len(part) > 40)}: ids are 0 to {_END - 1}")
    return int(digits)


def parse_squash(option: str, text: str) -> tuple[Squash, Squash]:
    """Read ``UID[:GID]``; without a GID the group has the same number.

    Raises:
        ConfigError: It is not that.
    """
    found = _PAIR.fullmatch(text)
    if found is not None:
        uid = _number(option, text, found[1])
        gid = uid if found[2] is None else _number(option, text, found[2])
        if uid < _END and gid < _END:
            return Squash(uid), Squash(gid)
    raise ConfigError(option, f"{text!r} is no id: write UID or UID:GID, each 0 to {_END - 1}")


def translation(uidmap: str | None, gidmap: str | None, squash: str | None) -> tuple[Ids, Ids] | None:
    """What the three options mean together: the translation of users and that of groups; None if none is given.

    Raises:
        ConfigError: One is not well formed, or `squash` is given with one of the others.
    """
    if squash is not None:
        for option, text in (("uidmap", uidmap), ("gidmap", gidmap)):
            if text is not None:
                raise ConfigError("squash", f"{squash!r} contradicts {option}={text}: there is one id, or a map")
        return parse_squash("squash", squash)
    if uidmap is None and gidmap is None:
        return None
    return (
        SameIds() if uidmap is None else parse_map("uidmap", uidmap),
        SameIds() if gidmap is None else parse_map("gidmap", gidmap),
    )
