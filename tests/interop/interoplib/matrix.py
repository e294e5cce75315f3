"""The clients that the tests run, what each is made to do, and the table of it in docs/interop.md."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from interoplib.tools import CHECKOUT

PAGE = CHECKOUT / "docs" / "interop.md"
COLUMNS = ("issue", "renew", "revoke", "key roll", "EAB", "tls-alpn-01", "wildcard", "IP", "other")
BEGIN, END = "<!-- clients -->", "<!-- end of clients -->"

LACKS: dict[str, dict[str, str]] = {
    "acme-client (Node.js)": {},
    "acme-client (Ruby)": {"EAB": "no such argument", "tls-alpn-01": "not among its challenges"},
    "acme-tiny": {
        **dict.fromkeys(("revoke", "key roll", "EAB"), "issues only"),
        **dict.fromkeys(("tls-alpn-01", "wildcard"), "http-01 only"),
        "IP": "orders DNS names only",
    },
    "acmeow": {},
    "aioacme": {"tls-alpn-01": "makes no certificate for it"},
    "Apache mod_md": {
        **dict.fromkeys(("revoke", "key roll"), "no such command"),
        "IP": "DNS names only",
    },
    "Caddy": {
        "renew": "no command for it: by itself, late in a certificate's life",
        **dict.fromkeys(("revoke", "key roll"), "no such command"),
        "wildcard": "needs a build with a DNS provider",
        "IP": "left to its own CA",
    },
    "certbot": {
        "key roll": "no such command",
        "tls-alpn-01": "given up by its makers",
    },
    "dehydrated": {"key roll": "no such command", "IP": "DNS names only (0.7.0)"},
    "gufo-acme": {
        **dict.fromkeys(("revoke", "key roll"), "no such method"),
        "tls-alpn-01": "makes no certificate for it",
        "IP": "orders DNS names only",
    },
    "lacme (Debian)": {
        **dict.fromkeys(("key roll", "EAB"), "no such command"),
        **dict.fromkeys(("tls-alpn-01", "wildcard"), "http-01 only"),
        "IP": "orders DNS names only",
    },
    "lacme (Python)": {"tls-alpn-01": "not among its challenges"},
    "lego": {"key roll": "no such command", "IP": "DNS names only (4.9)"},
    "uacme": {},
}
"""Each client with what it has not, and why: what is neither here nor done by a test is a hole in the tests."""


@dataclass
class Matrix:
    """What was seen: by client, its versions, and by column what was done."""

    versions: dict[str, dict[str, None]] = field(default_factory=dict)
    deeds: dict[tuple[str, str], dict[str, None]] = field(default_factory=dict)

    def record(self, client: str, version: str, column: str, deed: str) -> None:
        assert client in LACKS, f"{client} is not among the clients of interoplib/matrix.py"
        assert column in COLUMNS, f"there is no column {column}"
        assert column not in LACKS[client], f"{client} can do what interoplib/matrix.py says it can't: {column}"
        self.versions.setdefault(client, {})[version] = None
        self.deeds.setdefault((client, column), {})[deed] = None

    def holes(self) -> list[str]:
        """What no test showed, although nothing says that the client can't."""
        return [
            f"{client}: {column}"
            for client, lacks in LACKS.items()
            for column in COLUMNS[:-1]
            if column not in lacks and (client, column) not in self.deeds
        ]

    def render(self) -> str:
        lines = ["| client | versions | " + " | ".join(COLUMNS) + " | what it lacks |"]
        lines.append("|---" * (len(COLUMNS) + 3) + "|")
        for client in sorted(LACKS, key=str.lower):
            cells = [", ".join(self.deeds.get((client, column), {"-": None})) for column in COLUMNS]
            versions = ", ".join(self.versions[client])
            lines.append(f"| {client} | {versions} | {' | '.join(cells)} | {lacks(LACKS[client])} |")
        return "\n".join(lines) + "\n"

    def write(self) -> None:
        """Put the table into the page, between its marks."""
        page = PAGE.read_text("utf-8")
        before, _, rest = page.partition(BEGIN)
        _, _, after = rest.partition(END)
        PAGE.write_text(f"{before}{BEGIN}\n\n{self.render()}\n{END}{after}", "utf-8")


def lacks(reasons: Mapping[str, str]) -> str:
    """Columns that share a reason told together."""
    told: dict[str, list[str]] = {}
    for column, reason in reasons.items():
        told.setdefault(reason, []).append(column)
    return "; ".join(f"{', '.join(columns)}: {reason}" for reason, columns in told.items()) or "nothing"


def committed() -> dict[str, dict[str, str]]:
    """The table as it stands in the page: by client, its cells by column."""
    table = PAGE.read_text("utf-8").partition(BEGIN)[2].partition(END)[0]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line.startswith("|")
    ]
    return {row[0]: dict(zip(rows[0][1:], row[1:], strict=True)) for row in rows[2:]}
