"""The profiles in force, and the bodies of those that requests were pinned to."""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta

import structlog

from ca_server.core.audit import EventFactory
from ca_server.core.ports import ProfileStore, StoredProfile
from ca_server.domain.audit import AuditEvent, EventType
from ca_server.domain.errors import CaError, ErrorKind
from ca_server.domain.profiles import Profile

_log = structlog.get_logger()

_ATTEMPTS = 5


class ProfileBook:
    """Profiles by name as they now stand, and by content hash as they once stood.

    A pinned profile is honoured while a profile of its name is in force, and for `pin_lifetime` after another took its
    place: withdrawing the name stops it everywhere, and what was once in force can't be dug out for ever.
    """

    def __init__(
        self,
        store: ProfileStore,
        profiles: Mapping[str, Profile],
        *,
        pin_lifetime: timedelta = timedelta(days=7),
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._store = store
        self._current = dict(profiles)
        self._by_hash = {profile.hash: profile for profile in profiles.values()}
        self._pin_lifetime = pin_lifetime
        self._clock = clock

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
            found = Profile.from_body(stored.body)
            self._by_hash[content_hash] = found
        return found

    def current(self, name: str) -> Profile:
        """The profile of this name as it now stands. POLICY_DENIED where there is none."""
        found = self._current.get(name)
        if found is None:
            raise CaError(ErrorKind.POLICY_DENIED, f"there is no profile {name!r}", rule="profile.unknown")
        return found

    async def pinned(self, name: str, content_hash: str) -> Profile:
        """The profile that a request uses: pinned by hash, or the current one. POLICY_DENIED where withdrawn."""
        current = self.current(name)
        if not content_hash or content_hash == current.hash:
            return current
        stored = await self._store.profile_body(content_hash)
        if stored is None or stored.name != name:
            raise CaError(ErrorKind.POLICY_DENIED, "the pinned profile is not known", rule="profile.pinned")
        if stored.superseded_at is not None and self._clock() - stored.superseded_at > self._pin_lifetime:
            raise CaError(
                ErrorKind.POLICY_DENIED, "the pinned profile was replaced too long ago", rule="profile.pinned"
            )
        found = await self.by_hash(content_hash)
        assert found is not None
        return found

    async def put_in_force(
        self, profiles: Mapping[str, Profile], events: EventFactory, *, actor: str | None = None
    ) -> tuple[str, ...]:
        """Commit which profiles are in force, each change on record, then use them. Returns the names that changed.

        UNAVAILABLE where that can't be committed: then the old ones stay.
        """
        stored = [StoredProfile(profile.name, profile.hash, profile.body) for profile in profiles.values()]
        for _ in range(_ATTEMPTS):
            standing = await self._store.profiles_in_force()
            changed = tuple(
                name
                for name in sorted(standing.keys() | profiles.keys())
                if name not in profiles or standing.get(name) != profiles[name].hash
            )
            if not changed:
                break
            record = [self._event(events, name, standing.get(name), profiles.get(name), actor) for name in changed]
            try:
                await self._store.put_in_force(stored, standing, self._clock(), record)
            except CaError as error:
                if error.kind is not ErrorKind.CONFLICT:
                    raise
            else:
                break
        else:
            raise CaError(ErrorKind.UNAVAILABLE, "other nodes keep putting other profiles in force", retry_after=5)
        self._use(profiles)
        return changed

    def _event(
        self, events: EventFactory, name: str, before: str | None, after: Profile | None, actor: str | None
    ) -> AuditEvent:
        extra = {"content_hash": after.hash if after else "withdrawn"}
        if before is not None:
            extra["replaced"] = before
        return events.make(EventType.PROFILE_CHANGED, actor=actor, profile=name, object=f"profile:{name}", extra=extra)

    async def follow(self) -> bool:
        """Take up what the store says is in force; whether that differs from what stood. For fronts.

        Files may have been edited that the core has not read yet, or refused.
        """
        standing = await self._store.profiles_in_force()
        if standing == {name: profile.hash for name, profile in self._current.items()}:
            return False
        profiles = {name: await self.by_hash(content_hash) for name, content_hash in standing.items()}
        self._use({name: profile for name, profile in profiles.items() if profile is not None})
        return True

    def _use(self, profiles: Mapping[str, Profile]) -> None:
        self._current = dict(profiles)
        self._by_hash.update({profile.hash: profile for profile in profiles.values()})
        _log.info("profiles in force", names=self.names())
