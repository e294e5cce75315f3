"""The profiles in force, and the bodies of those that requests were pinned to."""

from collections.abc import Mapping

import structlog

from ca_server.core.audit import EventFactory
from ca_server.core.ports import ProfileStore
from ca_server.domain.audit import EventType
from ca_server.domain.errors import CaError, ErrorKind
from ca_server.domain.profiles import Profile

_log = structlog.get_logger()


class ProfileBook:
    """Profiles by name as they now stand, and by content hash as they once stood.

    A pinned profile is honoured while a profile of its name is in force: withdrawing the name stops it everywhere.
    """

    def __init__(self, store: ProfileStore, profiles: Mapping[str, Profile]) -> None:
        self._store = store
        self._current = dict(profiles)
        self._by_hash = {profile.hash: profile for profile in profiles.values()}

    def get(self, name: str) -> Profile | None:
        """The profile of this name as it now stands."""
        return self._current.get(name)

    def names(self) -> tuple[str, ...]:
        """Names in force."""
        return tuple(sorted(self._current))

    async def by_hash(self, content_hash: str) -> Profile | None:
        """A profile by content hash, from memory or from the store."""
        found = self._by_hash.get(content_hash)
        if found is None:
            stored = await self._store.profile_body(content_hash)
            if stored is None:
                return None
            found = Profile.from_body(stored[1])
            self._by_hash[content_hash] = found
        return found

    async def pinned(self, name: str, content_hash: str) -> Profile:
        """The profile that a request uses: pinned by hash, or the current one. POLICY_DENIED where withdrawn."""
        current = self._current.get(name)
        if current is None:
            raise CaError(ErrorKind.POLICY_DENIED, f"there is no profile {name!r}", rule="profile.unknown")
        if not content_hash or content_hash == current.hash:
            return current
        found = await self.by_hash(content_hash)
        if found is None or found.name != name:
            raise CaError(ErrorKind.POLICY_DENIED, "the pinned profile is not known", rule="profile.pinned")
        return found

    async def save(self, events: EventFactory) -> tuple[str, ...]:
        """Keep the bodies in the store, each new one on record. Returns the names that were new."""
        changed = []
        for profile in self._current.values():
            event = events.make(
                EventType.PROFILE_CHANGED,
                profile=profile.name,
                object=f"profile:{profile.name}",
                extra={"content_hash": profile.hash},
            )
            if await self._store.save_profile(profile.name, profile.hash, profile.body, [event]):
                changed.append(profile.name)
        return tuple(changed)

    def replace(self, profiles: Mapping[str, Profile]) -> None:
        """Put other profiles in force; the old ones stay known by hash."""
        self._current = dict(profiles)
        self._by_hash.update({profile.hash: profile for profile in profiles.values()})
        _log.info("profiles in force", names=self.names())
