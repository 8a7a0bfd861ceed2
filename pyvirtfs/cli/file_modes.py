"""Modes as chmod(1) takes them: octal, or symbolic (POSIX, chmod: "extended description")."""

from __future__ import annotations

import re
import stat

_CLAUSE = re.compile(r"([ugoa]*)((?:[-+=](?:[ugo]|[rwxXst]*))+)")
_ACTION = re.compile(r"([-+=])([ugo]|[rwxXst]*)")

_WHO = {"u": 0o4700, "g": 0o2070, "o": 0o1007, "a": 0o7777}
_SHIFTS = {"u": 6, "g": 3, "o": 0}
_EACH = 0o111
"""What a permission bit of everybody is multiplied with, to be one of user, group and others."""


class ModeChange:
    """A change of permissions, to be applied to any file.

    Args:
        text: What was typed, such as ``644``, ``u=rwX,go-w`` or ``+x``.

    Raises:
        ValueError: It is not a mode; says what would be one.
    """

    def __init__(self, text: str) -> None:
        self._octal: int | None = None
        self._clauses: list[tuple[str, list[tuple[str, str]]]] = []
        if re.fullmatch("[0-7]+", text):
            self._octal = int(text, 8)
            if self._octal > 0o7777:
                raise ValueError(f"{text!r} is not an octal mode from 0 to 7777")
            return
        for clause in text.split(","):
            found = _CLAUSE.fullmatch(clause)
            if found is None:
                raise ValueError(f"{text!r} is not a mode, such as 644 or u=rw,go-w")
            self._clauses.append((found[1], _ACTION.findall(found[2])))

    @property
    def is_relative(self) -> bool:
        """Whether the mode that a file has plays a part."""
        return self._octal is None

    def applied(self, mode: int, *, umask: int, is_folder: bool) -> int:
        """What becomes of a mode.

        Args:
            mode: The file's permissions, set-id and sticky bits.
            umask: What is left out where the change does not say for whom it is.
            is_folder: Whether it is a folder, which ``X`` makes accessible, and from which ``=`` takes no set-id bits
                (as GNU's chmod has it).
        """
        if self._octal is not None:
            return self._octal
        for who, actions in self._clauses:
            named = 0o7777 if "a" in who else sum(_WHO[letter] for letter in set(who))
            for sign, letters in actions:
                bits = _bits(letters, mode, is_folder) & (named or ~umask)
                if sign == "+":
                    mode |= bits
                elif sign == "-":
                    mode &= ~bits
                else:
                    kept = stat.S_ISUID | stat.S_ISGID if is_folder else 0
                    mode = mode & (~(named or 0o7777) | kept) | bits
        return mode


def _bits(letters: str, mode: int, is_folder: bool) -> int:
    """What the letters of an action stand for, as if for everybody."""
    if letters in _SHIFTS:
        return (mode >> _SHIFTS[letters] & 7) * _EACH
    bits = 0
    for letter in letters:
        if letter == "s":
            bits |= stat.S_ISUID | stat.S_ISGID
        elif letter == "t":
            bits |= stat.S_ISVTX
        elif letter == "X":
            bits |= _EACH if is_folder or mode & _EACH else 0
        else:
            bits |= {"r": 4, "w": 2, "x": 1}[letter] * _EACH
    return bits
