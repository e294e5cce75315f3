"""Runs first in every Python process whose PYTHONPATH names this folder: notes each SQL statement for SQLite.

One to a line, in a file for each process in the folder of STATEMENTS_FOLDER.
"""

import os
import sqlite3
from typing import Any

_connect = sqlite3.connect
_FILE = os.path.join(os.environ["STATEMENTS_FOLDER"], f"{os.getpid()}.sql")  # noqa: PTH118 - loaded at every start


def _note(statement: str) -> None:
    with open(_FILE, "a") as file:  # noqa: PTH123
        file.write(" ".join(statement.split()) + "\n")


class _Cursor(sqlite3.Cursor):
    def execute(self, statement: str, *parameters: Any) -> sqlite3.Cursor:
        _note(statement)
        return super().execute(statement, *parameters)


class _Connection(sqlite3.Connection):
    def execute(self, statement: str, *parameters: Any) -> sqlite3.Cursor:
        _note(statement)
        return super().execute(statement, *parameters)

    def cursor(self, *_arguments: Any, **_options: Any) -> sqlite3.Cursor:
        return super().cursor(factory=_Cursor)


def _noted(*arguments: Any, **options: Any) -> sqlite3.Connection:
    return _connect(*arguments, **options | {"factory": _Connection})


sqlite3.connect = sqlite3.dbapi2.connect = _noted
