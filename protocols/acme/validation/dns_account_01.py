"""The dns-account-01 challenge (draft-ietf-acme-dns-account-label): dns-01 at a label of each account's own.

So accounts of several clients, or of several CAs, can each have their label delegated for one name.
"""

from base64 import b32encode
from hashlib import sha256

from ca_server.domain.names import Identifier, IdentifierType
from protocols.acme.validation.dns_01 import check_txt
from protocols.acme.validation.model import ValidationPolicy, ValidationProblem, ValidationTarget
from protocols.acme.validation.resolver import Resolver

_LABEL_OCTETS = 10


class DnsAccount01Validator:
    """Looks for the digest of the key authorization among the TXT records of the account's label."""

    type = "dns-account-01"

    def __init__(self, policy: ValidationPolicy, resolver: Resolver) -> None:  # noqa: ARG002 - as every validator
        self._resolver = resolver

    def applies(self, identifier: Identifier, wildcard: bool) -> bool:  # noqa: ARG002 - wildcards too
        """For DNS names, wildcards too."""
        return identifier.type is IdentifierType.DNS

    async def validate(self, target: ValidationTarget) -> ValidationProblem | None:
        """One lookup."""
        name = f"{account_label(target.account_url)}._acme-challenge.{target.identifier.value}"
        return await check_txt(self._resolver, name, target)


def account_label(account_url: str) -> str:
    """`_` and the first ten octets of the SHA-256 digest of the account's URL, in base32 of lower case."""
    return "_" + b32encode(sha256(account_url.encode("ascii")).digest()[:_LABEL_OCTETS]).decode("ascii").lower()
