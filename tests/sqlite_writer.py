"""A writer of an SQLite database that a bad lock would betray, and what must be true after several of them.

It runs anywhere, also in a guest: ``sqlite_writer.py FOLDER NAME TRANSACTIONS SEED`` writes with Python's own SQLite,
and prints how many transactions it has committed.
"""

from __future__ import annotations

import contextlib
import os
import random
import sqlite3
import sys
import time
from typing import Any

DATABASE = "database"
PATIENCE = 100
"""Seconds that writers wait for others at most; where each would wait for the other, SQLite refuses at once."""


def create(folder: str | os.PathLike[str]) -> None:
    """The database as the writers expect it."""
    with contextlib.closing(sqlite3.connect(os.path.join(folder, DATABASE))) as connection:
        connection.executescript(
            """
            CREATE TABLE counter (value INTEGER);
            INSERT INTO counter VALUES (0);
            CREATE TABLE log (writer TEXT, number INTEGER, value INTEGER UNIQUE, filling BLOB);
            """
        )


def write(
    connection: Any,
    writer: str,
    transactions: int,
    seed: int,
    busy: tuple[type[Exception], ...] = (sqlite3.OperationalError,),
) -> int:
    """Count up, and log it, in so many transactions, of which some are rolled back; returns how many were not."""
    chance = random.Random(seed)
    committed = 0
    for number in range(transactions):
        abort = chance.random() < 0.2
        begin = chance.choice(("BEGIN", "BEGIN IMMEDIATE", "BEGIN EXCLUSIVE"))
        while True:
            try:
                connection.execute(begin)
                value = connection.execute("SELECT value FROM counter").fetchone()[0] + 1
                connection.execute("UPDATE counter SET value = ?", (value,))
                connection.execute(
                    "INSERT INTO log VALUES (?, ?, ?, ?)", (writer, number, value, bytes(chance.randrange(6000)))
                )
                connection.execute("ROLLBACK" if abort else "COMMIT")
                break
            except busy as error:
                if isinstance(error, sqlite3.OperationalError) and "locked" not in str(error):
                    raise
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                time.sleep(chance.random() / 200)
        committed += not abort
    return committed


def check(folder: str | os.PathLike[str], committed: dict[str, int]) -> None:
    """No transaction is lost, none is half there, and the file is in order."""
    with contextlib.closing(sqlite3.connect(os.path.join(folder, DATABASE))) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        logged = dict(connection.execute("SELECT writer, count(*) FROM log GROUP BY writer"))
        assert logged == {writer: count for writer, count in committed.items() if count}
        total = sum(committed.values())
        assert connection.execute("SELECT value FROM counter").fetchall() == [(total,)]
        assert connection.execute("SELECT count(*), min(value), max(value) FROM log").fetchone() == (total, 1, total)
    assert [name for name in os.listdir(folder) if name.startswith(DATABASE)] == [DATABASE]


def main(folder: str, name: str, transactions: str, seed: str) -> None:
    """The program."""
    connection = sqlite3.connect(os.path.join(folder, DATABASE), isolation_level=None, timeout=PATIENCE)
    with contextlib.closing(connection):
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("PRAGMA busy_timeout = 50")  # SQLite waits in ever longer steps, and finds itself overtaken
        print(write(connection, name, int(transactions), int(seed)))


if __name__ == "__main__":
    main(*sys.argv[1:])
