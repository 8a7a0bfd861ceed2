"""When Linux takes the set-user-id and set-group-id bits away from what somebody without privilege makes or changes.

A server does not know the groups of its guest's users, nor their capabilities. So here all but root are without.
"""

from __future__ import annotations

import stat
from typing import Final

SET_IDS: Final = stat.S_ISUID | stat.S_ISGID
GROUP_RUNS: Final = stat.S_ISGID | stat.S_IXGRP
"""A program that runs as its group; without S_IXGRP the other bit once meant mandatory locking, not a privilege."""


def without_set_ids(mode: int) -> int:
    """A mode, with its type, as Linux leaves it when a user without CAP_FSETID changes the object; folders keep it."""
    if not mode & SET_IDS or stat.S_ISDIR(mode):
        return mode
    cleared = mode & ~stat.S_ISUID
    return cleared & ~stat.S_ISGID if mode & GROUP_RUNS == GROUP_RUNS else cleared


def without_group_privilege(mode: int, folder_mode: int) -> int:
    """What Linux makes of the mode of a new object, no folder, in a folder that gives its group away (inode(7)).

    Whoever is not of that group must not get a program that runs as the group.
    """
    return mode & ~stat.S_ISGID if folder_mode & stat.S_ISGID and mode & GROUP_RUNS == GROUP_RUNS else mode
