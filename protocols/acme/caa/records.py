"""CAA properties and the value of `issue` and `issuewild` as the RFCs write them: octets in, values out, and back."""

import re
from dataclasses import dataclass

_CRITICAL = 0x80
_SHOWN = 120
_LABEL = r"[A-Za-z0-9](?:-*[A-Za-z0-9])*"
_ISSUE_VALUE = re.compile(rf"[ \t]*(?:(?P<issuer>{_LABEL}(?:\.{_LABEL})*)[ \t]*)?(?:;(?P<parameters>.*))?", re.DOTALL)
_PARAMETER = re.compile(rf"(?P<tag>{_LABEL})[ \t]*=[ \t]*(?P<value>[\x21-\x3a\x3c-\x7e]*)")
_WHITE = " \t"


class MalformedValueError(ValueError):
    """The value is not what RFC 8659 section 4.2 lets an issuer write."""


@dataclass(frozen=True, slots=True)
class CaaRecord:
    """A property (RFC 8659 section 4.1): `tag` as it stands in DNS, `value` whatever octets are there."""

    flags: int
    tag: str
    value: bytes

    @property
    def kind(self) -> str:
        """The tag as tags are compared: without case."""
        return self.tag.lower()

    @property
    def is_critical(self) -> bool:
        """Whether who does not understand the property must not issue."""
        return bool(self.flags & _CRITICAL)

    def __str__(self) -> str:
        """As a zone file has it, cut, with `?` for what does not print: peers choose it."""
        text = self.value.decode("latin-1")
        cut = text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."
        return f'{self.flags} {self.tag} "{"".join(c if " " <= c <= "~" else "?" for c in cut)}"'


@dataclass(frozen=True, slots=True)
class IssueValue:
    """What `issue` or `issuewild` says: the issuer in lower case (empty: nobody), and parameters as written."""

    issuer: str
    parameters: tuple[tuple[str, str], ...] = ()

    def of(self, tag: str) -> tuple[str, ...]:
        """The values of a parameter, however often it is there; its tag is compared without case."""
        return tuple(value for name, value in self.parameters if name.lower() == tag)

    def encode(self) -> bytes:
        """The value as RFC 8659 section 4.2 writes it; `parse_issue_value` gives this value again."""
        parts = [self.issuer, *(f"{tag}={value}" for tag, value in self.parameters)]
        return ("; ".join(parts) or ";").encode("ascii")


def parse_issue_value(value: bytes) -> IssueValue:
    """Read the value of `issue` or `issuewild` by the grammar of RFC 8659 section 4.2. MalformedValueError."""
    try:
        found = _ISSUE_VALUE.fullmatch(value.decode("ascii"))
    except UnicodeDecodeError as error:
        raise MalformedValueError("the value is not ASCII") from error
    if found is None:
        raise MalformedValueError("the value does not begin with a domain name")
    text = (found["parameters"] or "").strip(_WHITE)
    parameters = tuple(map(_parameter, text.split(";"))) if text else ()
    return IssueValue((found["issuer"] or "").lower(), parameters)


def _parameter(text: str) -> tuple[str, str]:
    found = _PARAMETER.fullmatch(text.strip(_WHITE))
    if found is None:
        raise MalformedValueError("a parameter is not written as tag=value")
    return found["tag"], found["value"]
