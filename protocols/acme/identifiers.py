"""The identifiers that a client asks for: what it wrote, read; and one problem document for all that can't be had."""

from collections.abc import Callable, Mapping, Sequence

from ca_server.domain.enrollment import Deny
from ca_server.domain.names import (
    Identifier,
    InvalidNameError,
    SentIdentifier,
    dns_identifier,
    hardware_module,
    ip_identifier,
    permanent_identifier,
)
from protocols.acme.model import OrderIdentifier
from protocols.acme.objects import OrderIdentifier as Wanted
from protocols.acme.problems import ErrorType, Problem, ProblemError, Subproblem

Parsers = Mapping[str, Callable[[str], Identifier]]
PARSERS: Parsers = {"dns": dns_identifier, "ip": ip_identifier}
DEVICE_PARSERS: Parsers = {"permanent-identifier": permanent_identifier, "hardware-module": hardware_module}
"""Where attestations are accepted."""
_SHOWN = 255


def read_identifiers(
    wanted: Sequence[Wanted], parsers: Parsers = PARSERS
) -> tuple[tuple[OrderIdentifier, ...], tuple[Subproblem, ...]]:
    """What each identifier means, once where two mean the same, and what is wrong with those that mean nothing."""
    found: dict[Identifier, OrderIdentifier] = {}
    wrong = []
    for item in wanted:
        parse = parsers.get(item.type)
        if parse is None:
            detail = f"identifiers of this type are not supported; use {' or '.join(parsers)}"
            wrong.append(_subproblem(ErrorType.UNSUPPORTED_IDENTIFIER, detail, item))
            continue
        try:
            identifier = parse(item.value)
        except InvalidNameError as error:
            # draft-ietf-acme-device-attest sections 3.1 and 4.1 want malformed for what is not of their grammar.
            kind = ErrorType.MALFORMED if item.type in DEVICE_PARSERS else ErrorType.REJECTED_IDENTIFIER
            wrong.append(_subproblem(kind, str(error), item, rule="names.syntax"))
            continue
        ancestor = None
        if item.ancestorDomain is not None:
            ancestor = _ancestor(identifier, item.ancestorDomain)
            if ancestor is None:
                detail = "ancestorDomain is no domain above the identifier (RFC 9444 section 4.3)"
                wrong.append(_subproblem(ErrorType.MALFORMED, detail, item, rule="names.ancestor"))
                continue
        found.setdefault(identifier, OrderIdentifier(identifier, item.value, ancestor))
    return tuple(found.values()), tuple(wrong)


def _ancestor(identifier: Identifier, text: str) -> Identifier | None:
    """The domain that a client calls an ancestor of an identifier; None where it is not."""
    try:
        ancestor = dns_identifier(text, wildcard=False)
    except InvalidNameError:
        return None
    is_above = identifier.type is ancestor.type and identifier.value.endswith(f".{ancestor.value}")
    return ancestor if is_above else None


def refused(wrong: Sequence[Subproblem], asked: int) -> ProblemError:
    """The error for identifiers of which these can't be had: each in a subproblem, unless it was asked for alone."""
    first = wrong[0]
    if asked == 1:
        return ProblemError(Problem(first.type, first.detail, rule=first.rule))
    kinds = {each.type for each in wrong}
    kind = first.type if len(kinds) == 1 else ErrorType.COMPOUND
    detail = f"{len(wrong)} of {asked} identifiers can't be had"
    return ProblemError(Problem(kind, detail, subproblems=tuple(wrong), rule=first.rule))


def denied(denials: Sequence[Deny]) -> tuple[Subproblem, ...]:
    """What policy has against identifiers, as the client is told; denials of another kind are left out."""
    return tuple(
        Subproblem(ErrorType.REJECTED_IDENTIFIER, deny.detail, deny.identifier, deny.rule)
        for deny in denials
        if deny.identifier is not None
    )


def _subproblem(kind: ErrorType, detail: str, item: Wanted, rule: str | None = None) -> Subproblem:
    return Subproblem(kind, detail, SentIdentifier(item.type[:_SHOWN], item.value[:_SHOWN]), rule)
