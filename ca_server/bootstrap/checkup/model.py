"""What a check is."""

from dataclasses import dataclass
from enum import StrEnum


class Verdict(StrEnum):
    """How a check ended."""

    GOOD = "good"
    WARNING = "warning"
    BAD = "bad"


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at; `found` ends with the remedy where there is one."""

    name: str
    verdict: Verdict
    found: str


def good(name: str, found: str) -> Check:
    """All is well."""
    return Check(name, Verdict.GOOD, found)


def warning(name: str, found: str) -> Check:
    """Something to know of: the exit code stays 0."""
    return Check(name, Verdict.WARNING, found)


def bad(name: str, found: str) -> Check:
    """Something needs the operator."""
    return Check(name, Verdict.BAD, found)
