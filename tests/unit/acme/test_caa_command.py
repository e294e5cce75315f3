"""`ca-server acme caa`, and the start that wants to know by which names CAA records call this CA."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from ca_server.bootstrap.checkup.network import caa
from ca_server.bootstrap.profiles import load_profiles
from ca_server.cli.app import application
from ca_server.configuration import load_settings
from ca_server.domain.errors import ConfigurationError
from ca_server.settings import Home

CONFIGURATION = Path(__file__).parents[3] / "config"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home of configuration alone: nothing is opened but DNS."""
    shutil.copy(CONFIGURATION / "ca-server.toml", tmp_path)
    shutil.copytree(CONFIGURATION / "profiles", tmp_path / "profiles")
    short = tmp_path / "profiles" / "short.toml"
    short.write_text('caa = "enforce"\n' + short.read_text())
    return tmp_path


@pytest.fixture
def ask(home: Path, nameserver: Any) -> Any:
    def asked(*arguments: str) -> Any:
        sets = (
            "acme.caa_identities=ca.test",
            f"dns.nameservers={nameserver.address}",
            "server.external_https_url=https://ca.test",
        )
        options = [part for each in sets for part in ("--set", each)]
        return CliRunner().invoke(application(), ["acme", "caa", *arguments, "--home", str(home), *options])

    return asked


def test_what_is_found_is_told_for_each_challenge(nameserver: Any, ask: Any) -> None:
    nameserver.records = {("b.test", "CAA"): ["0 issue ca.test; validationmethods=dns-01", "0 issue other.example"]}
    nameserver.authenticated = {"a.b.test", "b.test"}
    done = ask("a.b.test.", "--profile", "short", "--json")
    assert done.exit_code == 0, done.output
    report = json.loads(done.output)
    assert (report["name"], report["mode"], report["found_at"]) == ("a.b.test", "enforce", "b.test")
    assert report["authenticated"] is True
    assert set(report["records"]) == {'0 issue "ca.test; validationmethods=dns-01"', '0 issue "other.example"'}
    allowed = {each["method"]: each["allowed"] for each in report["methods"]}
    assert allowed.pop("dns-01") is True
    assert allowed["http-01"] is False
    assert report["lets_pass"] == ['a.b.test. CAA 0 issue "ca.test"']
    table = ask("a.b.test").output
    assert "default (caa = off)" in table
    assert "does not list http-01, by which control was shown (RFC 8657 section 4)" in table


def test_an_account_is_named_by_id_or_url(nameserver: Any, ask: Any) -> None:
    url = "https://ca.test/acme/account/abc"
    nameserver.records = {("a.test", "CAA"): [f"0 issue ca.test; accounturi={url}"]}
    for account in ("abc", url):
        done = ask("a.test", "--account", account, "--json")
        assert done.exit_code == 0, done.output
        assert json.loads(done.output)["lets_pass"] == [f'a.test. CAA 0 issue "ca.test; accounturi={url}"']
    refused = ask("a.test")
    assert refused.exit_code == 1
    assert "FORBIDS" in refused.output
    assert "is for one account (RFC 8657 section 3)" in refused.output


def test_a_wildcard_is_another_name(nameserver: Any, ask: Any) -> None:
    nameserver.records = {("a.test", "CAA"): ["0 issue ca.test", "0 issuewild other.example"]}
    assert ask("a.test").exit_code == 0
    done = ask("*.a.test", "--json")
    assert done.exit_code == 1
    report = json.loads(done.output)
    assert {each["method"].partition("-")[0] for each in report["methods"]} == {"dns"}
    assert report["lets_pass"] == ['a.test. CAA 0 issuewild "ca.test"']


def test_no_answer_is_told(nameserver: Any, ask: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("protocols.acme.caa.climbing._PAUSE", 0)
    nameserver.rcodes = {"a.test": 2}
    done = ask("a.test")
    assert done.exit_code == 1
    assert "not known (RFC 8659 section 3): CAA of a.test: no nameserver gave an answer (SERVFAIL)" in done.output


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("no name",), "NAME"),
        (("a.test", "--profile", "nosuch"), "default"),
        (("a.test", "--account", "a b"), "--account"),
    ],
)
def test_mistakes(ask: Any, arguments: tuple[str, ...], told: str) -> None:
    done = ask(*arguments)
    assert done.exit_code == 2
    assert told in done.output


def test_a_profile_that_asks_for_caa_needs_the_names_of_this_ca(home: Path) -> None:
    place = Home(home)
    with pytest.raises(ConfigurationError) as mistake:
        load_profiles(place, load_settings(place.configuration, (), {}))
    line = str(mistake.value)
    assert line.startswith(f"{home / 'profiles' / 'short.toml'}: caa = 'enforce': acme.caa_identities in {home}")
    settings = load_settings(place.configuration, ("acme.caa_identities=ca.test",), {})
    assert load_profiles(place, settings)["short"].caa.value == "enforce"


@pytest.mark.parametrize(
    ("mode", "rcode", "verdict", "told"),
    [
        ("off", 0, None, ""),
        ("log", 0, "good", "one.test: 1 records at test, not authenticated (DNSSEC)"),
        ("log", 5, "warning", "REFUSED"),
        ("enforce", 5, "bad", "let dns.nameservers be resolvers that answer for every name"),
    ],
)
async def test_doctor_looks_whether_the_nameserver_answers(
    home: Path, nameserver: Any, mode: str, rcode: int, verdict: str | None, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An authority for zones inside refuses other names, and so every order of a profile that enforces CAA."""
    monkeypatch.setattr("protocols.acme.caa.climbing._PAUSE", 0)
    nameserver.records = {("test", "CAA"): ["0 issue ca.test"]}
    nameserver.rcodes = {"test": rcode} if rcode else {}
    short = home / "profiles" / "short.toml"
    suffixes = '["test", "internal", "home.arpa", "localhost"]'
    assert suffixes in short.read_text()
    short.write_text(short.read_text().replace("enforce", mode).replace(suffixes, '["one.test"]'))
    settings = ("acme.caa_identities=ca.test", f"dns.nameservers={nameserver.address}")
    checks = [check async for check in caa(Home(home), load_settings(Home(home).configuration, settings, {}))]
    assert [check.verdict.value for check in checks] == ([] if verdict is None else [verdict])
    assert all(told in check.found for check in checks)


async def test_doctor_tells_of_profiles_that_are_wrong(home: Path) -> None:
    (check,) = [check async for check in caa(Home(home), load_settings(Home(home).configuration, (), {}))]
    assert (check.name, check.verdict.value) == ("profiles", "bad")
    assert "acme.caa_identities" in check.found
