"""Agreement to the terms of service, and to those that came after them (RFC 8555 section 7.3.3)."""

from ca_server.domain.accounts import Account
from protocols.acme.problems import ErrorType, Problem, ProblemError


def has_agreed(account: Account, terms: str) -> bool:
    """Whether the account agreed to the terms at this URL; to none there is nothing to agree to."""
    return not terms or (account.terms_agreed_at is not None and account.terms_of_service == terms)


def must_agree(terms: str) -> ProblemError:
    """The refusal of who has not agreed: the terms are where a person reads what to do."""
    return ProblemError(
        Problem(
            ErrorType.USER_ACTION_REQUIRED,
            f"agree to the terms of service: {terms}",
            instance=terms,
            terms_of_service=terms,
        )
    )
