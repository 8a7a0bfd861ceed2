"""The lexical half of a path on a mount: names, and what can be told from them without asking the server.

The work is left to `pathlib.PurePosixPath`; what is added is that paths belong to a mount, are always absolute, and are
made of bytes. A byte that is no part of UTF-8 is a surrogate in strings (PEP 383), as in `os.fsdecode`.
"""

from __future__ import annotations

import os
from functools import total_ordering
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Self, TypeAlias, Union

from pyvirtfs.guest.mount import split_names

if TYPE_CHECKING:
    from pyvirtfs.guest.mount import Mount

Segment: TypeAlias = Union[str, bytes, "os.PathLike[str]", "PureGuestPath"]
"""What paths are made from: names with slashes between them."""


@total_ordering
class PureGuestPath:
    """A path on a mount; all that is done with it is done with its names.

    It is no `os.PathLike` on purpose: the functions of `os`, which that would admit, name files of the host.

    Args:
        mount: The mount.
        segments: Put together from left to right; one that begins with a slash starts at the root again.
    """

    __slots__ = ("mount", "names")

    def __init__(self, mount: Mount, *segments: Segment) -> None:
        self.mount = mount
        self.names: tuple[bytes, ...] = ()
        """The names on the way from the root; ``..`` may be one of them, ``.`` is none."""
        for segment in segments:
            if isinstance(segment, PureGuestPath):
                self.names = segment.names
            else:
                raw = os.fsencode(segment)
                self.names = (() if raw.startswith(b"/") else self.names) + tuple(split_names(raw))

    # --- as something else ---

    @property
    def pure(self) -> PurePosixPath:
        """The same names as a path of the standard library, which knows no mount."""
        return PurePosixPath(str(self))

    def as_posix(self) -> str:
        """The path as a string."""
        return str(self)

    def __bytes__(self) -> bytes:
        return b"/" + b"/".join(self.names)

    def __str__(self) -> str:
        return os.fsdecode(bytes(self))

    def __repr__(self) -> str:
        return f"GuestPath({str(self)!r})"

    # --- parts ---

    @property
    def parts(self) -> tuple[str, ...]:
        """The root, ``/``, and the names."""
        return ("/", *map(os.fsdecode, self.names))

    @property
    def anchor(self) -> str:
        """The root: ``/``."""
        return "/"

    @property
    def name(self) -> str:
        """The last name; empty for the root."""
        return os.fsdecode(self.names[-1]) if self.names else ""

    @property
    def stem(self) -> str:
        """The last name without its suffix."""
        return self.pure.stem

    @property
    def suffix(self) -> str:
        """What follows the last dot of the last name, with the dot; empty if there is no such thing."""
        return self.pure.suffix

    @property
    def suffixes(self) -> list[str]:
        """All suffixes of the last name."""
        return self.pure.suffixes

    @property
    def parent(self) -> Self:
        """The path without its last name; the root's is the root."""
        return self._with_names(self.names[:-1])

    @property
    def parents(self) -> tuple[Self, ...]:
        """The parent, its parent, and so on up to the root."""
        return tuple(self._with_names(self.names[:count]) for count in reversed(range(len(self.names))))

    # --- other paths ---

    def __truediv__(self, other: Segment) -> Self:
        return self.joinpath(other)

    def joinpath(self, *segments: Segment) -> Self:
        """A path below this one; a segment that begins with a slash starts at the root again."""
        return type(self)(self.mount, self, *segments)

    def with_name(self, name: str | bytes) -> Self:
        """The path with another last name. ValueError if that is no name, or for the root."""
        return self._like(self.pure.with_name(os.fsdecode(name)))

    def with_stem(self, stem: str | bytes) -> Self:
        """The path with another stem and the same suffix. ValueError as for `with_name`."""
        return self._like(self.pure.with_stem(os.fsdecode(stem)))

    def with_suffix(self, suffix: str | bytes) -> Self:
        """The path with another suffix, or none. ValueError if it does not begin with a dot, or for the root."""
        return self._like(self.pure.with_suffix(os.fsdecode(suffix)))

    def absolute(self) -> Self:
        """The path itself: all are absolute."""
        return self

    # --- comparisons ---

    def is_absolute(self) -> bool:
        """Always."""
        return True

    def relative_to(self, other: Segment, **options: Any) -> PurePosixPath:
        """The way from `other` to this path; what is relative belongs to no mount. ValueError if this is not below.

        Args:
            other: A path of this mount.
            options: Those of the running Python's `pathlib` (`walk_up` since 3.12).
        """
        return self.pure.relative_to(self._pure_of(other), **options)

    def is_relative_to(self, other: Segment) -> bool:
        """Whether it is `other`, or below it."""
        return self.pure.is_relative_to(self._pure_of(other))

    def match(self, pattern: str, **options: Any) -> bool:
        """Whether it matches a pattern with wildcards, from the right unless the pattern is absolute.

        Args:
            pattern: In the language of the running Python's `pathlib`.
            options: Likewise (`case_sensitive` since 3.12).
        """
        return self.pure.match(pattern, **options)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, PureGuestPath):
            return NotImplemented
        return self.names == other.names and self.mount.session is other.mount.session

    def __lt__(self, other: object) -> bool:
        if not isinstance(other, PureGuestPath):
            return NotImplemented
        return self.parts < other.parts

    def __hash__(self) -> int:
        return hash(self.names)

    # --- inside ---

    def _with_names(self, names: tuple[bytes, ...]) -> Self:
        path = type(self)(self.mount)
        path.names = names
        return path

    def _like(self, pure: PurePosixPath) -> Self:
        return self._with_names(tuple(os.fsencode(name) for name in pure.parts[1:]))

    def _pure_of(self, other: Segment) -> PurePosixPath:
        if not isinstance(other, PureGuestPath):
            return PurePosixPath(os.fsdecode(other))
        if other.mount.session is not self.mount.session:
            raise ValueError(f"{other} belongs to another mount")
        return other.pure
