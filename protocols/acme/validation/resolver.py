"""Names to addresses, TXT and CAA records, from the configured nameservers or as this system resolves names.

Nothing is cached: a client that has just corrected its record must not wait for our memory of the wrong one.
"""

import asyncio
import socket
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from ipaddress import ip_address

import dns.asyncresolver
import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.nameserver
import dns.rdatatype
import dns.resolver
from dns.rdtypes.ANY.CAA import CAA
from dns.rdtypes.txtbase import TXTBase

from protocols.acme.caa.records import CaaRecord
from protocols.acme.validation.model import Dnssec, IPAddress

MAX_ALIASES = 8
"""CNAMEs followed across answers; within one answer dnspython has its own bound."""
MAX_ADDRESSES = 16
MAX_TXT_RECORDS = 200
MAX_CAA_RECORDS = 100
_UDP_PAYLOAD = 1232
"""Octets that pass unfragmented nearly everywhere; what is longer comes over TCP."""
_DNS_PORT = 53
_SYSTEM_LOOKUPS = 32
_LOOPBACK: tuple[IPAddress, ...] = (ip_address("127.0.0.1"), ip_address("::1"))


class DnsFailure(Exception):  # noqa: N818 - not an error of ours: the answer of the network
    """There is no usable answer; `retryable` where one may come soon, `missing` where there is no such name."""

    def __init__(self, detail: str, *, retryable: bool, missing: bool = False) -> None:
        super().__init__(detail)
        self.detail = detail
        self.retryable = retryable
        self.missing = missing


@dataclass(frozen=True, slots=True)
class Nameserver:
    """Address and port of a nameserver."""

    address: str
    port: int = _DNS_PORT


@dataclass(frozen=True, slots=True)
class CaaAnswer:
    """The CAA records of one name, and whether the server said that it authenticated the answer (RFC 4035 3.2.3)."""

    records: tuple[CaaRecord, ...]
    authenticated: bool


@dataclass(frozen=True, slots=True)
class _Found:
    records: list[dns.rdata.Rdata]
    authenticated: bool


def parse_nameserver(text: str) -> Nameserver:
    """Read `ip`, `ip:port`, `ipv6` or `[ipv6]:port`. Raises ValueError for anything else."""
    host, port = text, ""
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise ValueError(f"{text!r} is no address of a nameserver")
        port = rest[1:]
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
    address = str(ip_address(host))
    if not port:
        return Nameserver(address)
    if not (port.isascii() and port.isdigit()) or not 0 < int(port) <= 0xFFFF:  # noqa: PLR2004 - the last port
        raise ValueError(f"{text!r} has no valid port")
    return Nameserver(address, int(port))


class Resolver:
    """Looks names up; has no state but its options, and the threads for the system's resolver."""

    def __init__(
        self,
        nameservers: tuple[str, ...] = (),
        timeout: float = 5.0,
        dnssec: Dnssec = Dnssec.OPPORTUNISTIC,
    ) -> None:
        """`timeout` in seconds, for each lookup. Raises ValueError for a nameserver that is no address."""
        self._nameservers = [parse_nameserver(text) for text in nameservers]
        self._timeout = timeout
        self._dnssec = dnssec
        # own threads: hostile names that answer slowly must not hold up those that the rest of the process uses
        self._threads = ThreadPoolExecutor(_SYSTEM_LOOKUPS, "validation-dns")

    async def addresses(self, name: str) -> tuple[IPAddress, ...]:
        """IPv6 and IPv4 addresses of the name, at least one and at most 16. Raises DnsFailure."""
        name = name.lower().rstrip(".")
        try:
            # What the system answers does not tell whether it was authenticated.
            if self._nameservers or self._dnssec is Dnssec.REQUIRE:
                found = await self._queried_addresses(name)
            else:
                found = await self._system_addresses(name)
        except DnsFailure:
            # RFC 6761 section 6.3: these names are the loopback's whether or not a server knows them
            if name == "localhost" or name.endswith(".localhost"):
                return _LOOPBACK
            raise
        return tuple(dict.fromkeys(found))[:MAX_ADDRESSES]

    async def txt(self, name: str) -> tuple[str, ...]:
        """TXT records of the name, the strings of each joined; empty where the name has none. Raises DnsFailure."""
        records = (await self._query(name, dns.rdatatype.TXT)).records
        texts = (b"".join(record.strings).decode("latin-1") for record in records if isinstance(record, TXTBase))
        return tuple(texts)[:MAX_TXT_RECORDS]

    async def caa(self, name: str) -> CaaAnswer:
        """CAA records of the name, or of what it is an alias of; none where there is no such name. Raises DnsFailure.

        Never a part of what is there: any record may be the one that forbids.
        """
        found = await self._query(name, dns.rdatatype.CAA)
        if len(found.records) > MAX_CAA_RECORDS:
            raise DnsFailure(f"{name} has more than {MAX_CAA_RECORDS} CAA records", retryable=False)
        records = tuple(
            CaaRecord(record.flags, record.tag.decode("ascii"), record.value)
            for record in found.records
            if isinstance(record, CAA)
        )
        return CaaAnswer(records, found.authenticated)

    async def _queried_addresses(self, name: str) -> list[IPAddress]:
        found: list[IPAddress] = []
        failures: list[DnsFailure] = []
        kinds = (dns.rdatatype.AAAA, dns.rdatatype.A)
        for answer in await asyncio.gather(*(self._query(name, kind) for kind in kinds), return_exceptions=True):
            if isinstance(answer, DnsFailure):
                failures.append(answer)
            elif isinstance(answer, BaseException):
                raise answer
            else:
                found += [ip_address(record.to_text()) for record in answer.records]
        if found:
            return found
        raise failures[0] if failures else DnsFailure(f"{name} has no A or AAAA record", retryable=True)

    async def _system_addresses(self, name: str) -> list[IPAddress]:
        _refuse_number(name)
        loop = asyncio.get_running_loop()
        lookup = loop.run_in_executor(self._threads, _getaddrinfo, name)
        try:
            return await asyncio.wait_for(lookup, self._timeout)
        except TimeoutError as error:
            raise DnsFailure(f"looking up {name} took longer than {self._timeout:g} s", retryable=True) from error
        except (OSError, UnicodeError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else "not a host name"
            raise DnsFailure(f"looking up {name} failed: {reason}", retryable=True) from error

    async def _query(self, name: str, kind: dns.rdatatype.RdataType) -> _Found:
        """Records of one type; follows aliases whose target the same answer does not hold."""
        what = f"{dns.rdatatype.to_text(kind)} of {name}"
        try:
            async with asyncio.timeout(self._timeout):
                return await self._follow(dns.name.from_text(name), kind)
        except (TimeoutError, dns.exception.Timeout) as error:
            raise DnsFailure(f"no nameserver answered for {what} in {self._timeout:g} s", retryable=True) from error
        except dns.resolver.NXDOMAIN as error:
            raise DnsFailure(f"{what}: no such name (NXDOMAIN)", retryable=True, missing=True) from error
        except dns.resolver.NoNameservers as error:
            raise DnsFailure(f"{what}: {_rcode(error)}", retryable=True) from error
        except dns.resolver.NoResolverConfiguration as error:
            raise DnsFailure("this server has no nameserver configured", retryable=True) from error
        except (dns.name.LabelTooLong, dns.name.NameTooLong, dns.name.EmptyLabel, dns.name.BadEscape) as error:
            raise DnsFailure(f"{what}: not a name that can be looked up", retryable=False) from error
        except (dns.exception.DNSException, OSError, ValueError, EOFError) as error:
            raise DnsFailure(f"{what}: the lookup failed ({type(error).__name__})", retryable=True) from error

    async def _follow(self, name: dns.name.Name, kind: dns.rdatatype.RdataType) -> _Found:
        resolver = self._resolver(asks_for_caa=kind is dns.rdatatype.CAA)
        authenticated = True
        for _ in range(MAX_ALIASES + 1):
            try:
                answer = await resolver.resolve(name, kind, raise_on_no_answer=False, search=False)
            except dns.resolver.NXDOMAIN as error:
                if kind is not dns.rdatatype.CAA:
                    raise
                # RFC 8659 section 3 climbs on from a name that is not there, and from an alias of none.
                said: dict[dns.name.Name, dns.message.Message] = error.kwargs["responses"]
                return _Found([], authenticated and all(map(self._authenticated, said.values())))
            authenticated &= self._authenticated(answer.response)
            if answer.rrset is not None:
                return _Found(list(answer.rrset), authenticated)
            if answer.canonical_name == name:
                return _Found([], authenticated)
            name = answer.canonical_name
        raise DnsFailure(f"{name}: more than {MAX_ALIASES} aliases in a row", retryable=False)

    def _authenticated(self, answer: dns.message.Message) -> bool:
        """Whether the server says so; its word is believed because it was configured. DnsFailure where it must."""
        authenticated = self._dnssec is not Dnssec.OFF and bool(answer.flags & dns.flags.AD)
        if self._dnssec is Dnssec.REQUIRE and not authenticated:
            name = answer.question[0].name.to_text(omit_final_dot=True) if answer.question else "the name"
            detail = f"the answer about {name} is not authenticated (DNSSEC), which this server requires"
            raise DnsFailure(detail, retryable=False)
        return authenticated

    def _resolver(self, *, asks_for_caa: bool) -> dns.asyncresolver.Resolver:
        """Made for each query, so that a change of the system's configuration counts at once."""
        resolver = dns.asyncresolver.Resolver(configure=not self._nameservers)
        if self._nameservers:
            resolver.nameservers = [dns.nameserver.Do53Nameserver(ns.address, ns.port) for ns in self._nameservers]
        if self._dnssec is Dnssec.REQUIRE or (asks_for_caa and self._dnssec is not Dnssec.OFF):
            resolver.flags = dns.flags.RD | dns.flags.AD  # RFC 6840 section 5.7: tell me whether you authenticated it
            resolver.use_edns(0, dns.flags.DO, _UDP_PAYLOAD)
        resolver.lifetime = self._timeout
        # a lost datagram is asked again within the lifetime
        resolver.timeout = max(self._timeout / 3, 0.1)
        return resolver


def _getaddrinfo(name: str) -> list[IPAddress]:
    entries = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    return [ip_address(str(entry[4][0]).partition("%")[0]) for entry in entries]


def _refuse_number(name: str) -> None:
    """The C library takes `0x7f000001` and `1.0x7f` for addresses; they are names here."""
    try:
        socket.inet_aton(name)
    except (OSError, UnicodeError):
        return
    raise DnsFailure(f"{name} is not a host name", retryable=False)


def _rcode(error: dns.resolver.NoNameservers) -> str:
    """What the servers said, in short."""
    said = {str(entry[3]) for entry in error.kwargs.get("errors", ())}
    return "no nameserver gave an answer" + (f" ({', '.join(sorted(said))})" if said else "")
