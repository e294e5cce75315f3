"""Where ACME resources are. Entry points are per profile; resources belong to the account alone."""

import re
from dataclasses import dataclass

ID = "[A-Za-z0-9_-]{1,64}"
"""What an id looks like in a URL, as a regular expression; nothing else reaches the database."""
CHALLENGE_ID = f"{ID}(?:/[a-z0-9-]{{1,32}})?"
"""The id of a challenge: its authorization's, and its type. Challenges of old had an id like everything else."""


def is_id(text: str) -> bool:
    """Whether the text can be an id of ours."""
    return re.fullmatch(ID, text) is not None


@dataclass(frozen=True, slots=True)
class Urls:
    """URLs from the configured base, never from a request's Host header."""

    base: str
    default_profile: str

    def entry(self, name: str, profile: str) -> str:
        """An entry point, such as `new-order`; the default profile's carries no profile."""
        if profile == self.default_profile:
            return f"{self.base}/acme/{name}"
        return f"{self.base}/acme/{profile}/{name}"

    def directory(self, profile: str) -> str:
        """A profile's directory."""
        return self.entry("directory", profile)

    def renewal_info(self) -> str:
        """What CertIDs are put behind, with a slash between (RFC 9773 section 4.1)."""
        return f"{self.base}/acme/renewal-info"

    def account(self, account_id: str) -> str:
        """An account: the `kid` of its requests."""
        return f"{self.base}/acme/account/{account_id}"

    def account_hash_prefix(self) -> str:
        """What the hashed URIs of accounts begin with; nothing is served there."""
        return f"{self.base}/acme/account-hash/"

    def account_orders(self, account_id: str) -> str:
        """The list of an account's orders."""
        return f"{self.base}/acme/account/{account_id}/orders"

    def order(self, order_id: str) -> str:
        """An order."""
        return f"{self.base}/acme/order/{order_id}"

    def finalize(self, order_id: str) -> str:
        """Where an order is finalized."""
        return f"{self.base}/acme/order/{order_id}/finalize"

    def certificate(self, order_id: str) -> str:
        """The certificate of an order."""
        return f"{self.base}/acme/certificate/{order_id}"

    def authorization(self, authorization_id: str) -> str:
        """An authorization."""
        return f"{self.base}/acme/authorization/{authorization_id}"

    def challenge(self, challenge_id: str) -> str:
        """A challenge; the id has a slash in it (`model.challenge_id`)."""
        return f"{self.base}/acme/challenge/{challenge_id}"

    def account_id_of(self, kid: str) -> str | None:
        """The account id in a `kid`; None where it is no account URL of this server."""
        prefix = self.account("")
        account_id = kid.removeprefix(prefix)
        return account_id if kid.startswith(prefix) and is_id(account_id) else None
