"""Mistakes in the arguments of `ca-server eab`, which are told before anything is opened."""

from collections.abc import Sequence

import pytest
from typer.testing import CliRunner

from ca_server.cli.app import application


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("create", "--expires", "0"), "--expires"),
        (("create", "--quota", "0 live"), "--quota"),
        (("create", "--quota", "many live"), "--quota"),
        (("create", "--reusable", "--max-uses", "0"), "--max-uses"),
        (("update", "KID"), "say what is to be changed"),
    ],
)
def test_mistakes(arguments: Sequence[str], told: str) -> None:
    result = CliRunner().invoke(application(), ["eab", *arguments])
    assert result.exit_code == 2
    assert told in result.output
