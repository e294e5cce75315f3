"""The documentation is held to the code, both ways: what is there is told, and what is told is there."""

import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from docs_of_code import (
    commands,
    events,
    metrics,
    profile_keys,
    routes,
    rules,
    setting_defaults,
    settings_of,
)

from ca_server.configuration import load_settings
from ca_server.configuration.wording import how_to_write
from ca_server.settings import Settings

ROOT = Path(__file__).resolve().parents[3]
REFERENCE = ROOT / "docs" / "reference.md"
CONFIGURATION = ROOT / "config" / "ca-server.toml"
CODE = re.compile(r"`([^`]+)`")


@cache
def tables() -> dict[str, list[list[str]]]:
    """The rows of each section's table in the reference."""
    found: dict[str, list[list[str]]] = {}
    section = ""
    for line in REFERENCE.read_text("utf-8").splitlines():
        if line.startswith("## "):
            section = line.removeprefix("## ")
        elif line.startswith("| ") and "---" not in line:
            found.setdefault(section, []).append([cell.strip() for cell in line.strip("|").split(" | ")])
    return {name: rows[1:] for name, rows in found.items()}


def code(cell: str) -> list[str]:
    return CODE.findall(cell)


def first_cells(section: str) -> list[str]:
    return [code(row[0])[0] for row in tables()[section]]


@pytest.mark.parametrize(
    ("section", "known"),
    [
        ("Settings", set(settings_of(Settings))),
        ("Profiles", set(profile_keys())),
        ("Commands", set(commands())),
        ("Metrics", set(metrics())),
        ("Audit events", events()),
        ("Rules", rules()),
    ],
)
def test_reference(section: str, known: set[str]) -> None:
    told = first_cells(section)
    assert sorted(told) == sorted(known)


def test_every_row_says_something() -> None:
    for section, rows in tables().items():
        for row in rows:
            assert len(row) == len(tables()[section][0]), row
            assert len(row[-1]) > 7, row


def test_settings_are_told_with_their_values_and_defaults() -> None:
    for row in tables()["Settings"]:
        (key,) = code(row[0])
        field = settings_of(Settings)[key]
        assert row[1] == how_to_write(field.type).removeprefix("write "), key
        assert row[2] == setting_defaults(field), key


def test_profile_keys_are_told_with_their_defaults() -> None:
    for row in tables()["Profiles"]:
        (key,) = code(row[0])
        assert row[1] == setting_defaults(profile_keys()[key]), key


def test_commands_are_told_with_their_options() -> None:
    for row in tables()["Commands"]:
        (name,) = code(row[0])
        arguments = commands()[name]
        assert row[1] == ("yes" if "--json" in arguments else ""), name
        assert code(row[2]) == [each for each in arguments if each not in {"--home", "--set", "--json"}], name


def test_metrics_are_told_with_their_types_and_labels() -> None:
    for row in tables()["Metrics"]:
        (name,) = code(row[0])
        assert (row[1], code(row[2])) == metrics()[name], name


def test_routes() -> None:
    told = [(row[0], row[1], code(row[2])[0]) for row in tables()["URLs"]]
    assert sorted(told) == sorted(routes())


def test_all_commands_are_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    told: set[str] = set()
    for line in readme.splitlines():
        if line.startswith("| `ca-server "):
            *nouns, verbs = code(line)[0].split()
            told |= {" ".join((*nouns, verb)) for verb in verbs.split("\\|")}
    assert told == set(commands())


def test_all_sections_are_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    for section in {key.rpartition(".")[0] for key in settings_of(Settings)}:
        assert f"`[{section}]`" in readme


# --- The configuration template -----------------------------------------------------------------------------------


def template_keys() -> Iterator[str]:
    """Keys of the template, commented out or not, by section; names of sections replaced as in the reference."""
    section = ""
    for line in CONFIGURATION.read_text("utf-8").splitlines():
        if header := re.fullmatch(r"\[([a-z.]+)\]", line):
            section = re.sub(r"^(listeners|issuers)\..*", r"\1.NAME", header[1])
        elif key := re.match(r"(?:# )?([a-z0-9_]+) = ", line):
            yield f"{section}.{key[1]}"


def test_template_has_every_setting() -> None:
    assert set(template_keys()) == set(settings_of(Settings))


def test_template_shows_the_defaults(tmp_path: Path) -> None:
    """With every commented line taken in, the template still says what the code does without it."""
    text = CONFIGURATION.read_text("utf-8")
    assert load_settings(CONFIGURATION, (), {}) == Settings()
    file = tmp_path / "ca-server.toml"
    file.write_text(re.sub(r"(?m)^# (?=[a-z0-9_]+ = )", "", text), "utf-8")
    assert load_settings(file, (), {}) == Settings()


# --- Links, paths -------------------------------------------------------------------------------------------------


def pages() -> list[Path]:
    return [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as forges make them."""
    headings = re.findall(r"(?m)^#+ (.+)$", page.read_text("utf-8"))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


LINKS = [
    (page, target)
    for page in pages()
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8"))
    if "://" not in target
]


@pytest.mark.parametrize(("page", "target"), LINKS, ids=[f"{page.name}:{target}" for page, target in LINKS])
def test_links_lead_somewhere(page: Path, target: str) -> None:
    path, _, anchor = target.partition("#")
    file = (page.parent / path).resolve() if path else page
    assert file.exists()
    assert file.is_relative_to(ROOT)
    if anchor:
        assert anchor in anchors(file)


def test_every_page_is_linked_to() -> None:
    targets = {(page.parent / target.partition("#")[0]).resolve() for page, target in LINKS}
    folders = {target for target in targets if target.is_dir()}
    for page in (ROOT / "docs").rglob("*.md"):
        assert page in targets or page.parent in folders, page


PATHS = re.compile(r"\b(?:[\w-]+/)+[\w.-]+\.(?:py|toml|md|txt|conf)\b")


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.name)
def test_files_that_are_named_are_there(page: Path) -> None:
    for path in {found for span in CODE.findall(page.read_text("utf-8")) for found in PATHS.findall(span)}:
        if path.startswith(("HOME/", "core/", "run/", "profiles/")) and not (ROOT / path).exists():
            path = f"ca_server/{path}"  # noqa: PLW2901 - the core's own files are named from there
            if not (ROOT / path).exists():
                continue
        found = [ROOT / path, ROOT / "ca_server" / path, page.parent / path]
        assert any(each.exists() for each in found), f"{page.name} names {path}"


OURS = re.compile(r"(?<![\w.])/(?:home|root|Users|work|workspace|mnt)/[\w.-]+|\.\./shared|/tmp/(?!\w*\*)[\w.-]+")
INVENTED = re.compile(r"/tmp/ca-|/home/x$")


@cache
def committed() -> list[Path]:
    done = subprocess.run(["git", "-C", ROOT, "ls-files"], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in done.stdout.splitlines()]


def test_no_path_of_a_developers_machine() -> None:
    found = [
        f"{file.relative_to(ROOT)}: {match[0]}"
        for file in committed()
        if file != Path(__file__) and file.is_file()
        for match in OURS.finditer(file.read_text("utf-8", "replace"))
        if not INVENTED.match(match[0])
    ]
    assert found == []
