"""Every setting as a frozen value, and the places of a home. `ca_server.configuration` reads them from file and more.

No setting holds a secret: PINs come from a file or an environment variable that a setting names.
"""

import re
import socket
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from ca_server.domain.keys import KeyAlgorithm
from ca_server.domain.rates import RATE_PATTERN

CONFIGURATION_FILE = "ca-server.toml"

Seconds = Annotated[float, Meta(gt=0, le=86_400 * 366)]
Port = Annotated[int, Meta(ge=1, le=65_535)]
Count = Annotated[int, Meta(ge=1, le=1_000_000)]
Name = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]
Days = Annotated[int, Meta(ge=1, le=36_525)]
RateText = Annotated[str, Meta(pattern=RATE_PATTERN)]
"""`ca_server.domain.rates.parse_rate` reads it."""


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
    staging: bool = False
    """Written by `init --staging`: a home for tests, whose issuers' common names begin with STAGING."""


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
    max_connections: Count = 8_000
    """Of one front; beyond it those that have waited longest are closed, of the address that has most of them."""
    max_connections_per_address: Count = 1_000
    max_concurrent_requests: Count = 1_000
    """Of one front; an address may have half of them."""
    max_bodies_per_address: Count = 100
    """Requests of one address whose body is still coming."""
    header_seconds: Seconds = 10
    body_seconds: Seconds = 10
    request_seconds: Seconds = 60
    write_seconds: Seconds = 30
    """For a client to take the next 64 KiB of an answer."""
    keepalive_seconds: Seconds = 60


class DatabaseSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`url` empty: SQLite in the home; postgresql://user@host/name, password by PGPASSWORD or ~/.pgpass."""

    url: str = ""
    front_url: str = ""
    """The same PostgreSQL database under the role of the fronts, who may do less; empty: as `url`."""
    owner_url: str = ""
    """The same under the role that owns the tables, for `init` and `db migrate` alone; empty: as `url`."""
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
    staging: bool = False
    """For clients to test with: the common name begins with STAGING, and so do those of the parent and the children."""
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


class AcmeLimitSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Rates that ACME clients are held to, as `300 per 3h`; empty: no limit."""

    accounts_per_network: RateText = ""
    orders_per_account: RateText = ""
    orders_per_network: RateText = ""
    orders: RateText = ""
    """New orders of everybody together."""
    certificates_per_name: RateText = ""
    certificates_per_domain: RateText = ""
    """Certificates with any name directly below one domain."""
    certificates_per_set: RateText = ""
    """Certificates with exactly the same names."""
    failures_per_name: RateText = ""
    """Failed validations of a name by one account."""
    ipv4_prefix: Annotated[int, Meta(ge=8, le=32)] = 32
    ipv6_prefix: Annotated[int, Meta(ge=16, le=128)] = 64
    help_url: str = ""
    """Where clients that are refused read more."""


class AcmeChaosSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What tries the clients of profiles that issue from a staging issuer; every other profile is refused here."""

    profiles: tuple[Name, ...] = ()
    bad_nonces: Annotated[float, Meta(ge=0, le=0.9)] = 0.05
    """The part of nonces that are refused when they come back."""
    validation_delay: Annotated[float, Meta(ge=0, le=60)] = 5
    """Seconds that a validation waits before it begins, at most; each draws its own."""
    authorization_reuse: Annotated[float, Meta(ge=0, le=1)] = 0.5
    """How often a valid authorization is reused by a new order."""


ChallengeType = Literal["http-01", "dns-01", "tls-alpn-01", "dns-account-01", "dns-persist-01"]


class AttestationSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """PEM files with the certificates that attestations of devices must lead to, by their format.

    A format without any is refused; without any at all, device-attest-01 is not offered. Relative paths begin at the
    home.
    """

    apple_roots: tuple[str, ...] = ()
    tpm_roots: tuple[str, ...] = ()
    """Of those who certify the TPMs' attestation keys."""
    step_roots: tuple[str, ...] = ()


class AcmeSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The ACME front-end (RFC 8555)."""

    challenges: Annotated[tuple[ChallengeType, ...], Meta(min_length=1)] = (
        "http-01",
        "dns-01",
        "tls-alpn-01",
        "dns-account-01",
    )
    """The challenge types that are offered, in that order; dns-persist-01 needs `caa_identities`."""
    http_01_port: Port = 80
    tls_alpn_01_port: Port = 443
    finalize_wait: Annotated[float, Meta(ge=0, le=30)] = 2
    require_eab: bool = False
    terms_of_service: str = ""
    website: str = ""
    caa_identities: tuple[str, ...] = ()
    caa_max_age: Annotated[float, Meta(ge=0, le=86_400 * 7)] = 28_800
    """How old the answers of DNS may be on which CAA lets an order pass; 0: always asked anew."""
    order_lifetime: Seconds = 86_400 * 7
    authorization_lifetime: Seconds = 86_400 * 30
    authorization_reuse_lifetime: Annotated[float, Meta(ge=0, le=86_400 * 366)] = 86_400 * 30
    """How long after its validation a valid authorization is good for new orders; 0: never."""
    nonce_lifetime: Seconds = 3600
    validation_timeout: Seconds = 10
    validation_attempts: Annotated[int, Meta(ge=1, le=20)] = 4
    validation_concurrency: Count = 50
    max_validations: Count = 500
    """Challenges of one account that are being validated at once."""
    allowed_networks: tuple[str, ...] = ()
    """Networks that validation may connect to; empty: all but the denied ones."""
    denied_networks: tuple[str, ...] = (
        "0.0.0.0/8",
        "::/128",
        "169.254.0.0/16",
        "fe80::/10",
        "224.0.0.0/4",
        "ff00::/8",
        "255.255.255.255/32",
        # Cloud metadata beside 169.254.169.254: Alibaba, Azure, Oracle, AWS, Google.
        "100.100.100.200/32",
        "168.63.129.16/32",
        "192.0.0.192/32",
        "fd00:ec2::254/128",
        "fd20:ce::254/128",
    )
    """Never connected to, whatever is allowed. Loopback is not among them: docs/security.md says why."""
    redirect_ports: tuple[Port, ...] = (80, 443)
    max_identifiers: Annotated[int, Meta(ge=1, le=1000)] = 100
    max_open_orders: Count = 300
    max_open_names: Count = 3_000
    """Names, and so authorizations, of one account's unfinished orders together."""
    max_open_authorizations: Count = 300
    """Pending authorizations that one account asked for by themselves (newAuthz)."""
    unsafe_skip_validation: bool = False
    """Challenges are valid without a look. Refused but in staging homes; logged and on record at every start."""
    retention: Seconds = 86_400 * 30
    """How long orders are kept after they, their authorizations and their certificate have expired."""
    renewal_retry_after: Annotated[int, Meta(ge=60, le=86_400)] = 21_600
    """Seconds until clients look at renewal information again, at most (RFC 9773 section 4.3.2: a minute to a day)."""
    limits: AcmeLimitSettings = AcmeLimitSettings()
    attestation: AttestationSettings = AttestationSettings()
    chaos: AcmeChaosSettings = AcmeChaosSettings()


class DnsSettings(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Name resolution for validation. `nameservers` as `ip[:port]`; empty: the system's."""

    nameservers: tuple[str, ...] = ()
    timeout: Seconds = 5
    dnssec: Literal["off", "opportunistic", "require"] = "opportunistic"
    """Opportunistic asks with CAA records whether the server has authenticated them, and puts that on record; require
    takes no answer, to any lookup, that it has not."""


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


def default_listeners() -> dict[str, ListenerSettings]:
    """The listeners of a configuration that declares none."""
    return {
        "https": ListenerSettings(port=8443, tls=True, serves=("acme", "status", "health", "metrics")),
        "http": ListenerSettings(port=8080, serves=("status", "health", "metrics")),
    }


def default_issuers() -> dict[str, IssuerSettings]:
    """The issuers of a configuration that declares none."""
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
    listeners: dict[Name, ListenerSettings] = msgspec.field(default_factory=default_listeners)
    database: DatabaseSettings = DatabaseSettings()
    token: TokenSettings = TokenSettings()
    issuers: dict[Name, IssuerSettings] = msgspec.field(default_factory=default_issuers)
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

    def is_staging_issuer(self, name: str) -> bool:
        """Whether the issuer's certificates say staging: by itself, or as all of a staging home."""
        return self.server.staging or (name in self.issuers and self.issuers[name].staging)

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
