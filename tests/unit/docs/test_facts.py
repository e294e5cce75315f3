"""The facts about clients in docs/interop.md are held by tests named after them, both ways."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
NAME = re.compile(r"def (test_fact_(\d\d)_\w+)\(")
FACTS = range(1, 27)


def told() -> dict[int, set[str]]:
    """The tests of each fact, as the page tells them."""
    section = (
        (ROOT / "docs" / "interop.md").read_text("utf-8").partition("\n## Facts about clients that tests hold\n")[2]
    )
    rows = [line.strip("|").split(" | ") for line in section.splitlines() if re.match(r"\| \d", line)]
    return {int(row[0]): set(re.findall(r"`(test_\w+)`", row[2])) for row in rows}


def named() -> dict[int, set[str]]:
    """The tests of each fact, by their names."""
    found: dict[int, set[str]] = {}
    for file in (ROOT / "tests").rglob("test_*.py"):
        for name, fact in NAME.findall(file.read_text("utf-8")):
            found.setdefault(int(fact), set()).add(name)
    return found


def test_every_fact_has_a_test() -> None:
    assert list(told()) == list(FACTS)
    assert all(told().values())


def test_what_is_told_is_there_and_what_is_there_is_told() -> None:
    assert told() == named()
