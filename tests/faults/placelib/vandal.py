"""Run in the place of a front: alters SQLite's file, which a front must be able to write.

DATABASE is its path; STATEMENTS are run in one transaction, triggers and all; how many rows each changed is told.
"""

import sqlite3
from typing import Any

GIVEN: dict[str, Any] = {}

connection = sqlite3.connect(GIVEN["DATABASE"], isolation_level=None, timeout=30)
connection.execute("BEGIN IMMEDIATE")
result = [connection.execute(statement).rowcount for statement in GIVEN["STATEMENTS"]]
connection.execute("COMMIT")
connection.close()
