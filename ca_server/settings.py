"""Configuration: one TOML file, overridden by `--set section.key=value` and the environment, into frozen values.

An unknown key is an error, and so is a value out of range: each names file, key, value and remedy in one line.
No setting holds a secret: PINs come from a file or an environment variable that a setting names.
"""

import ipaddress
import os
import re
import socket
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta, Struct

from ca_server.domain.errors import ConfigurationError
from ca_server.domain.keys import KeyAlgorithm
from ca_server.domain.syslog import SyslogAddress

ENVIRONMENT_PREFIX = "CA_SERVER__"
CONFIGURATION_FILE = "ca-server.toml"

Seconds = Annotated[float, Meta(gt=0, le=86_400 * 366)]
Port = Annotated[int, Meta(ge=1, le=65_535)]
Count = Annotated[int, Meta(ge=1, le=1_000_000)]
Name = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]
Days = Annotated[int, Meta(ge=1, le=36_525)]


class ServerSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Who this server is. `external_host` stands in every URL that certificates and clients are given."""

    external_host: str = ""
    external_https_url: str = ""
    """Set where a proxy or another port stands before the HTTPS listener; else made from host and port."""
    external_http_url: str = ""
    node: Name = "node1"
    tenant: Name = "default"
    names: tuple[str, ...] = ()
    """Further DNS names and addresses of the server's own TLS certificate."""


class ProcessSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Processes and users; the users matter only when started as root."""

    fronts: Annotated[int, Meta(ge=1, le=64)] = 1
    core_user: str = "ca-server-core"
    front_user: str = "ca-server-front"
    group: str = "ca-server"
    drain_seconds: Seconds = 30
    allow_root: bool = False
    """Run everything as root where the users do not exist: no separation."""


FrontEnd = Literal["acme", "status", "health", "metrics", "log"]


class ListenerSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One TCP listener."""

    address: str = "0.0.0.0"  # noqa: S104 - a CA serves its network; narrowed by configuration
    port: Port
    tls: bool = False
    serves: tuple[FrontEnd, ...]
    max_body: Annotated[int, Meta(ge=1024, le=16 * 1024 * 1024)] = 262_144
    max_connections: Count = 10_000
    max_concurrent_requests: Count = 1_000
    header_seconds: Seconds = 10
    request_seconds: Seconds = 60
    keepalive_seconds: Seconds = 60


class DatabaseSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`url` empty: SQLite in the home; postgresql://user@host/name, password by PGPASSWORD or ~/.pgpass."""

    url: str = ""
    pool_size: Annotated[int, Meta(ge=1, le=200)] = 4
    queue_limit: Count = 10_000


class TokenSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The PKCS#11 token that holds the keys. `module` empty: SoftHSM2 with its token inside the home."""

    module: str = ""
    label: str = "ca-server"
    pin_file: str = ""
    """Empty: `core/pin` in the home."""
    pin_environment: str = ""
    """Name of an environment variable of the core process that holds the PIN; wins over the file."""
    threads: Annotated[int, Meta(ge=1, le=64)] = 2
    timeout: Seconds = 10
    probe_interval: Seconds = 5


class IssuerSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A CA that `init` creates. `parent` empty: a self-signed root."""

    parent: str = ""
    key: KeyAlgorithm = KeyAlgorithm.P256
    common_name: Annotated[str, Meta(min_length=1, max_length=64)]
    organization: Annotated[str, Meta(max_length=64)] = ""
    country: Annotated[str, Meta(pattern=r"^([A-Z]{2})?$")] = ""
    days: Days = 3650
    path_length: Annotated[int, Meta(ge=0, le=8)] | None = None
    crl_lifetime: Seconds = 86_400 * 7
    crl_interval: Seconds = 86_400
    """A new CRL after this time even where nothing was revoked; at most half of the lifetime."""


class PolicySettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What applies to every profile."""

    default_profile: Name = "default"
    extra_domains: tuple[str, ...] = ()
    """Domains that profiles with `include_extra_domains` allow too."""


class StatusSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """OCSP and CRLs."""

    ocsp_lifetime: Seconds = 3600
    unknown_serial: Literal["unknown", "revoked", "unauthorized"] = "unknown"
    """What OCSP says of a serial that this CA never issued (RFC 6960 section 2.2)."""
    crl_coalesce: Annotated[float, Meta(ge=0, le=3600)] = 0.2
    """Seconds that a revocation waits for others before the CRL is signed again."""


class AcmeSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The ACME front-end (RFC 8555)."""

    http_01_port: Port = 80
    finalize_wait: Annotated[float, Meta(ge=0, le=30)] = 2
    require_eab: bool = False
    terms_of_service: str = ""
    website: str = ""
    caa_identities: tuple[str, ...] = ()
    order_lifetime: Seconds = 86_400 * 7
    authorization_lifetime: Seconds = 86_400 * 30
    nonce_lifetime: Seconds = 3600
    validation_timeout: Seconds = 10
    validation_attempts: Annotated[int, Meta(ge=1, le=20)] = 4
    validation_concurrency: Count = 50
    allowed_networks: tuple[str, ...] = ()
    """Networks that validation may connect to; empty: all but the denied ones."""
    denied_networks: tuple[str, ...] = ("169.254.0.0/16", "fe80::/10", "224.0.0.0/4", "ff00::/8", "0.0.0.0/32")
    redirect_ports: tuple[Port, ...] = (80, 443)
    max_identifiers: Annotated[int, Meta(ge=1, le=1000)] = 100
    max_open_orders: Count = 300


class DnsSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Name resolution for validation. `nameservers` as `ip[:port]`; empty: the system's."""

    nameservers: tuple[str, ...] = ()
    timeout: Seconds = 5


class AuditSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The audit log. `anchor` is best on another volume; empty: `core/anchor` in the home."""

    anchor: str = ""
    syslog: str = ""
    """Where each anchored checkpoint goes too, as a line of syslog (RFC 5424): `unix:/dev/log`, `udp://HOST[:PORT]` or
    `tcp://HOST[:PORT]`. Empty: nowhere."""
    log_allow_from: tuple[str, ...] = ("127.0.0.0/8", "::1/128")
    """Who may read the log on listeners that serve `log`: its entries show names and requesters."""
    checkpoint_interval: Annotated[float, Meta(gt=0, le=60)] = 0.5


class LintSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Certificate linting beyond the built-in rules."""

    pkilint: bool = True
    pkilint_timeout: Seconds = 10
    sample_interval: Seconds = 3600
    sample_size: Annotated[int, Meta(ge=0, le=1000)] = 20


class LogSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The server's log on standard error."""

    format: Literal["json", "console"] = "json"
    level: Literal["debug", "info", "warning", "error"] = "info"


class MetricsSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Who may read /metrics."""

    allow_from: tuple[str, ...] = ("127.0.0.0/8", "::1/128")


def _default_listeners() -> dict[str, ListenerSettings]:
    return {
        "https": ListenerSettings(port=8443, tls=True, serves=("acme", "status", "health", "metrics")),
        "http": ListenerSettings(port=8080, serves=("status", "health", "metrics")),
    }


def _default_issuers() -> dict[str, IssuerSettings]:
    return {
        "root": IssuerSettings(
            common_name="ca-server Root CA", days=7300, crl_lifetime=86_400 * 90, crl_interval=86_400 * 30
        ),
        "issuing": IssuerSettings(common_name="ca-server Issuing CA", parent="root", days=3650, path_length=0),
    }


class Settings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The whole configuration."""

    server: ServerSettings = ServerSettings()
    processes: ProcessSettings = ProcessSettings()
    listeners: dict[Name, ListenerSettings] = msgspec.field(default_factory=_default_listeners)
    database: DatabaseSettings = DatabaseSettings()
    token: TokenSettings = TokenSettings()
    issuers: dict[Name, IssuerSettings] = msgspec.field(default_factory=_default_issuers)
    policy: PolicySettings = PolicySettings()
    status: StatusSettings = StatusSettings()
    acme: AcmeSettings = AcmeSettings()
    dns: DnsSettings = DnsSettings()
    audit: AuditSettings = AuditSettings()
    lint: LintSettings = LintSettings()
    log: LogSettings = LogSettings()
    metrics: MetricsSettings = MetricsSettings()

    @property
    def hash(self) -> str:
        """Content hash of the effective configuration, as audit events carry it."""
        return sha256(msgspec.json.encode(self, order="deterministic")).hexdigest()[:16]

    @property
    def external_host(self) -> str:
        """The host name in URLs: configured, else as `default_host` finds it."""
        return self.server.external_host or default_host()

    @property
    def https_url(self) -> str:
        """Base URL of the TLS listener, without a slash at the end."""
        return self.server.external_https_url.rstrip("/") or self._url(tls=True)

    @property
    def http_url(self) -> str:
        """Base URL of the plain listener: what CRLDP and AIA point at."""
        return self.server.external_http_url.rstrip("/") or self._url(tls=False)

    def _url(self, *, tls: bool) -> str:
        scheme, standard = ("https", 443) if tls else ("http", 80)
        host = f"[{self.external_host}]" if ":" in self.external_host else self.external_host
        for listener in self.listeners.values():
            if listener.tls is tls:
                port = "" if listener.port == standard else f":{listener.port}"
                return f"{scheme}://{host}{port}"
        return f"{scheme}://{host}"


def default_host() -> str:
    """This machine's full name where it resolves, else 127.0.0.1: a name of one label is no good in a certificate."""
    name = socket.getfqdn()
    if re.fullmatch(r"[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)+", name) and not name.endswith(".arpa"):
        try:
            socket.getaddrinfo(name, None)
        except OSError:
            return "127.0.0.1"
        return name.lower()
    return "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Home:
    """The home directory: `core` is closed to the fronts and `run` the core's to write, `data` and `metrics` are shared
    by group, `tls` is the fronts'.
    """

    path: Path

    @property
    def configuration(self) -> Path:
        """The configuration file."""
        return self.path / CONFIGURATION_FILE

    @property
    def profiles(self) -> Path:
        """Folder of the certificate profiles."""
        return self.path / "profiles"

    @property
    def core(self) -> Path:
        """PIN, token and anchor: the core's alone."""
        return self.path / "core"

    @property
    def pin_file(self) -> Path:
        """The user PIN of the token."""
        return self.core / "pin"

    @property
    def so_pin_file(self) -> Path:
        """The security officer's PIN of the embedded token."""
        return self.core / "so-pin"

    @property
    def softhsm_configuration(self) -> Path:
        """Configuration of the embedded SoftHSM2."""
        return self.core / "softhsm2.conf"

    @property
    def tokens(self) -> Path:
        """Token directory of the embedded SoftHSM2."""
        return self.core / "tokens"

    @property
    def anchor(self) -> Path:
        """Default place of the audit log's anchor."""
        return self.core / "anchor"

    @property
    def log_key(self) -> Path:
        """The public key(s) of the audit log, for verification."""
        return self.path / "log-key.pem"

    @property
    def token_lock(self) -> Path:
        """Lock around logging in to the token."""
        return self.core / "token.lock"

    @property
    def node_id(self) -> Path:
        """What tells this home from others on the same database."""
        return self.core / "node-id"

    @property
    def data(self) -> Path:
        """The embedded database's folder."""
        return self.path / "data"

    @property
    def database_url(self) -> str:
        """URL of the embedded database."""
        return f"sqlite:///{self.data / 'ca.db'}"

    @property
    def run(self) -> Path:
        """The socket on which the core hears the fronts."""
        return self.path / "run"

    @property
    def core_socket(self) -> Path:
        """The port that fronts use."""
        return self.run / "core.sock"

    @property
    def admin_socket(self) -> Path:
        """The port that the command line uses."""
        return self.core / "admin.sock"

    @property
    def lock(self) -> Path:
        """Held by the one core process of this home."""
        return self.core / "lock"

    @property
    def tls(self) -> Path:
        """Key and certificate of the TLS listeners."""
        return self.path / "tls"

    @property
    def metrics(self) -> Path:
        """Metric files of all processes."""
        return self.path / "metrics"


def load_settings(
    path: Path | None, overrides: Iterable[str] = (), environment: Mapping[str, str] | None = None
) -> Settings:
    """Read the file (defaults where `path` is None), then the environment, then `section.key=value` overrides.

    Raises ConfigurationError with one line naming file, key, value and remedy.
    """
    where = str(path) if path is not None else "defaults"
    tree: dict[str, Any] = {}
    if path is not None:
        tree = _read_toml(path)
    for key, text, origin in _all_overrides(overrides, os.environ if environment is None else environment):
        _override(tree, key, text, origin)
    settings = _convert(tree, where)
    _check(settings, where)
    return settings


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError:
        raise ConfigurationError(
            str(path), "file", None, "not found; run 'ca-server init' or name the home with --home"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(str(path), "file", None, f"can't be read: {error}") from None
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(str(path), "syntax", None, f"not TOML: {error}") from None


def _all_overrides(overrides: Iterable[str], environment: Mapping[str, str]) -> list[tuple[str, str, str]]:
    found = []
    for name, text in sorted(environment.items()):
        if name.startswith(ENVIRONMENT_PREFIX):
            key = name.removeprefix(ENVIRONMENT_PREFIX).lower().replace("__", ".")
            found.append((key, text, f"environment {name}"))
    for item in overrides:
        key, equals, text = item.partition("=")
        if not equals or "." not in key:
            raise ConfigurationError("--set", item, None, "write section.key=value")
        found.append((key.strip(), text, "--set"))
    return found


def _override(tree: dict[str, Any], key: str, text: str, origin: str) -> None:
    parts = key.split(".")
    node = tree
    spec: Any = Settings
    for part in parts[:-1]:
        spec = _field_type(spec, part, origin, key)
        node = node.setdefault(part, _defaults_for(spec, part))
        if not isinstance(node, dict):
            raise ConfigurationError(origin, key, text, f"{part} is not a section")
    leaf = _field_type(spec, parts[-1], origin, key)
    try:
        node[parts[-1]] = _parse_value(leaf, text)
    except (msgspec.ValidationError, msgspec.DecodeError, ValueError) as error:
        raise ConfigurationError(origin, key, text, str(error)) from None


def _defaults_for(_spec: Any, part: str) -> dict[str, Any]:
    """Overriding one key of a default listener or issuer keeps the others."""
    if part == "listeners":
        return {name: msgspec.to_builtins(value) for name, value in _default_listeners().items()}
    if part == "issuers":
        return {name: msgspec.to_builtins(value) for name, value in _default_issuers().items()}
    return {}


def _field_type(spec: Any, part: str, origin: str, key: str) -> Any:
    if isinstance(spec, type) and issubclass(spec, Struct):
        for field in msgspec.structs.fields(spec):
            if field.name == part:
                return field.type
        known = ", ".join(field.name for field in msgspec.structs.fields(spec))
        raise ConfigurationError(origin, key, None, f"unknown key {part!r}; known here: {known}")
    arguments: tuple[Any, ...] = getattr(spec, "__args__", ())
    if getattr(spec, "__origin__", None) is dict and len(arguments) == 2:  # noqa: PLR2004
        return arguments[1]
    raise ConfigurationError(origin, key, None, f"{part!r} is not inside a section")


def _parse_value(kind: Any, text: str) -> Any:
    info = msgspec.inspect.type_info(kind)
    if isinstance(info, (msgspec.inspect.VarTupleType, msgspec.inspect.ListType)):
        items: Any
        if text.lstrip().startswith("["):
            items = tomllib.loads(f"value = {text}")["value"]
        else:
            items = [item.strip() for item in text.split(",") if item.strip()]
        return msgspec.to_builtins(msgspec.convert(items, kind, strict=False))
    if isinstance(info, msgspec.inspect.BoolType):
        lowered = text.lower()
        if lowered not in {"true", "false", "1", "0", "yes", "no", "on", "off"}:
            raise ValueError("expected true or false")
        return lowered in {"true", "1", "yes", "on"}
    return msgspec.to_builtins(msgspec.convert(text, kind, strict=False))


_PATH = re.compile(r" - at `(key in )?\$?\.?(?P<path>[^`]*)`")


def _convert(tree: dict[str, Any], where: str) -> Settings:
    try:
        return msgspec.convert(tree, Settings)
    except msgspec.ValidationError as error:
        message = str(error)
        found = _PATH.search(message)
        path = (found["path"] if found else "").replace("[...]", "")
        remedy = _PATH.sub("", message)
        value: Any = tree
        for part in path.split(".") if path else ():
            value = value.get(part) if isinstance(value, dict) else None
        shown = value if isinstance(value, (str, int, float, bool)) else None
        raise ConfigurationError(where, path or "file", shown, remedy) from None


def _check(settings: Settings, where: str) -> None:
    """Check what types alone can't: each failure names its key."""
    _check_listeners(settings, where)
    _check_networks(settings, where)
    _check_nameservers(settings, where)
    _check_urls(settings, where)
    _check_issuers(settings, where)
    _check_syslog(settings, where)


def _check_listeners(settings: Settings, where: str) -> None:
    if not settings.listeners:
        raise ConfigurationError(where, "listeners", None, "declare at least one [listeners.NAME]")
    taken: dict[int, str] = {}
    for name, listener in settings.listeners.items():
        other = taken.setdefault(listener.port, name)
        if other != name:
            raise ConfigurationError(
                where, f"listeners.{name}.port", listener.port, f"already taken by listeners.{other}; choose another"
            )
        try:
            ipaddress.ip_address(listener.address)
        except ValueError:
            raise ConfigurationError(
                where, f"listeners.{name}.address", listener.address, "write an IPv4 or IPv6 address"
            ) from None


def _check_networks(settings: Settings, where: str) -> None:
    for key, networks in (
        ("acme.allowed_networks", settings.acme.allowed_networks),
        ("acme.denied_networks", settings.acme.denied_networks),
        ("metrics.allow_from", settings.metrics.allow_from),
        ("audit.log_allow_from", settings.audit.log_allow_from),
    ):
        for network in networks:
            try:
                ipaddress.ip_network(network)
            except ValueError as error:
                raise ConfigurationError(where, key, network, f"write a network such as 10.0.0.0/8 ({error})") from None


def _check_urls(settings: Settings, where: str) -> None:
    for key, url, scheme in (
        ("server.external_https_url", settings.server.external_https_url, "https"),
        ("server.external_http_url", settings.server.external_http_url, "http"),
    ):
        if url and not _is_base_url(url, scheme):
            raise ConfigurationError(where, key, url, f"write {scheme}://HOST[:PORT][/PATH], in ASCII")


def _is_base_url(url: str, scheme: str) -> bool:
    if not url.isascii() or not url.isprintable() or " " in url:
        return False
    try:
        parts = urlsplit(url)
        plain = not (parts.query or parts.fragment or parts.username)
        return parts.scheme == scheme and bool(parts.hostname) and parts.port != 0 and plain
    except ValueError:
        return False


def _check_nameservers(settings: Settings, where: str) -> None:
    for server in settings.dns.nameservers:
        host, port = server, "53"
        if server.startswith("["):
            host, _, port = server[1:].partition("]:")
            host = host.removesuffix("]")
        elif server.count(":") == 1:
            host, _, port = server.partition(":")
        try:
            ipaddress.ip_address(host)
            good = 0 < int(port or "53") < 65_536  # noqa: PLR2004 - ports
        except ValueError:
            good = False
        if not good:
            raise ConfigurationError(where, "dns.nameservers", server, "write IP, IP:PORT or [IPV6]:PORT")


def _check_syslog(settings: Settings, where: str) -> None:
    if settings.audit.syslog:
        try:
            SyslogAddress.parse(settings.audit.syslog)
        except ValueError as error:
            raise ConfigurationError(where, "audit.syslog", settings.audit.syslog, str(error)) from None


def _check_issuers(settings: Settings, where: str) -> None:
    for name, issuer in settings.issuers.items():
        if issuer.parent and issuer.parent not in settings.issuers:
            raise ConfigurationError(
                where, f"issuers.{name}.parent", issuer.parent, "name an issuer of this file, or leave it out"
            )
        seen = {name}
        ancestor = issuer.parent
        while ancestor:
            if ancestor in seen:
                raise ConfigurationError(
                    where, f"issuers.{name}.parent", issuer.parent, "parents must not form a circle"
                )
            seen.add(ancestor)
            ancestor = settings.issuers[ancestor].parent if ancestor in settings.issuers else ""
        if issuer.crl_interval > issuer.crl_lifetime / 2:
            raise ConfigurationError(
                where, f"issuers.{name}.crl_interval", issuer.crl_interval, "at most half of crl_lifetime"
            )
