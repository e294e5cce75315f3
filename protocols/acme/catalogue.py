"""The profiles that each directory offers (draft-ietf-acme-profiles): what clients are told, and what they may ask for.

The default profile's directory offers every profile that ACME may use; any other directory its own profile alone, so
that what an operator handed out as `/acme/PROFILE/directory` gives nothing else.
"""

from collections.abc import Mapping

from ca_server.domain.enrollment import Protocol
from ca_server.domain.errors import CaError, ErrorKind
from ca_server.domain.profiles import Profile
from protocols.acme.ports import ProfileSource
from protocols.acme.problems import ErrorType, Problem, ProblemError

DEFAULT = "default"
"""What the configured default profile is called in URLs, whatever its name."""


class Catalogue:
    """What there is to choose from, by the profiles in force."""

    def __init__(self, profiles: ProfileSource, default_profile: str) -> None:
        self._profiles = profiles
        self._default = default_profile

    def directory(self, name: str) -> str | None:
        """The profile whose directory `/acme/NAME/directory` is; None where there is none for ACME."""
        name = self._default if name == DEFAULT else name
        return None if self._for_acme(name) is None else name

    def offered(self, directory: str) -> Mapping[str, str]:
        """The profiles of a directory, each with what a person is told of it."""
        names = self._profiles.names() if directory == self._default else (directory,)
        found = (self._for_acme(name) for name in names)
        return {each.name: each.description or f"profile {each.name}" for each in found if each is not None}

    def choose(self, directory: str, wanted: str | None) -> Profile:
        """The profile of a new order: the one it asks for, or the directory's own. NOT_FOUND; invalidProfile."""
        if wanted is None or wanted == directory:
            own = self._profiles.get(directory)
            if own is None:
                raise CaError(ErrorKind.NOT_FOUND, f"there is no profile {directory!r}")
            return own
        found = self._for_acme(wanted) if directory == self._default else None
        if found is None:
            names = ", ".join(self.offered(directory))
            raise invalid_profile(f"this directory has no such profile, but: {names}", rule="acme.profile")
        return found

    def _for_acme(self, name: str) -> Profile | None:
        profile = self._profiles.get(name)
        return profile if profile is not None and Protocol.ACME in profile.frontends else None


def invalid_profile(detail: str, *, rule: str) -> ProblemError:
    """That an order can't be had under the profile that it names."""
    return ProblemError(Problem(ErrorType.INVALID_PROFILE, detail, rule=rule))
