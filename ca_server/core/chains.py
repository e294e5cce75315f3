"""The chains of an issuer's key: a key may have several CA certificates, cross-signed or renewed.

Pure: certificates in, chains out. A chain is what a client is given behind its certificate: the issuer's first, the
root left out (RFC 8555 section 9.1).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import Final

from cryptography import x509
from cryptography.x509.oid import NameOID

from ca_server.domain.certificates import CaCertificate

MAX_CHAINS: Final = 10
"""Of one key: what was imported is few, but chains through several cross-signed issuers multiply."""


@dataclass(frozen=True, slots=True)
class Chain:
    """A way from an issuer's key to a root; `root` is the common name of that root."""

    certificates: tuple[bytes, ...]
    root: str


def chains_of(
    key_id: int, known: Sequence[CaCertificate], now: datetime, preferred: Sequence[str] = ()
) -> tuple[Chain, ...]:
    """Every chain of a key whose certificates are all valid now, the default one first.

    That is the chain to the root named first in `preferred`, where there is one; else the one that certificates were
    signed under from the start. The others follow, of newer certificates first.
    """
    by_key: dict[int, list[CaCertificate]] = {}
    for certificate in sorted(known, key=lambda each: (each.preferred, each.created_at), reverse=True):
        by_key.setdefault(certificate.issuer_key_id, []).append(certificate)
    owners = {certificate.der: certificate.issuer_key_id for certificate in known}
    found: dict[tuple[bytes, ...], Chain] = {}
    for path in islice(_paths(key_id, by_key, owners, frozenset({key_id})), 10 * MAX_CHAINS):
        parsed = [x509.load_der_x509_certificate(der) for der in path]
        if all(each.not_valid_before_utc <= now < each.not_valid_after_utc for each in parsed):
            found.setdefault(path[:-1], Chain(path[:-1], common_name(parsed[-1].subject)))
    rank = {name: place for place, name in enumerate(reversed(preferred), start=1)}
    ordered = sorted(found.values(), key=lambda chain: -rank.get(chain.root, 0))
    return tuple(ordered[:MAX_CHAINS])


def common_name(name: x509.Name) -> str:
    """The common name, or where there is none the whole name."""
    values = name.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(values[0].value) if values else name.rfc4514_string()


def _paths(
    key_id: int, by_key: Mapping[int, Sequence[CaCertificate]], owners: Mapping[bytes, int], passed: frozenset[int]
) -> Iterator[tuple[bytes, ...]]:
    """Paths up to a root, its certificate last; no key twice."""
    for certificate in by_key.get(key_id, ()):
        above = owners.get(certificate.chain[0]) if certificate.chain else None
        if above is None or above in passed:
            # A root, or under a CA that is not ours: what is above was told when it was imported.
            yield (certificate.der, *certificate.chain)
            continue
        for path in _paths(above, by_key, owners, passed | {above}):
            yield (certificate.der, *path)
