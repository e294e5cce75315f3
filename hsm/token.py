"""One token, logged in once for the process, and brought back without a restart when it was away."""

import fcntl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pkcs11
import structlog

from ca_server.domain.errors import CaError, ConfigurationError
from hsm.failures import PIN_REFUSED, login_failure, unavailable
from hsm.module import Module
from hsm.options import TokenOptions
from hsm.pin import PinSource

__all__ = ["PinSource", "Token", "TokenOptions"]

_log = structlog.get_logger(__name__)

_FIRST_PAUSE = 0.5
_LAST_PAUSE = 10.0


class TokenAwayError(Exception):
    """The token is not open: recover first."""


class Token:
    """The token with its keeper session, whose log-in holds for all sessions of the process.

    Threads that use the token hold `in_use`; recovery waits until none does, then finalises the module, initialises
    it, logs in, and `generation` grows: sessions and handles of an older generation are dead. All methods block.
    """

    def __init__(self, options: TokenOptions) -> None:
        self.options = options
        self.generation = 0
        self._module = Module(options.module, options.softhsm_configuration)
        self._token: pkcs11.Token | None = None
        self._keeper: pkcs11.Session | None = None
        self._idle = threading.Condition()
        self._users = 0
        self._recovering = False
        self._pause = _FIRST_PAUSE
        self._not_before = 0.0
        self._last_failure = ""
        self._refused_pin: str | None = None
        """The PIN that the token refused last; more tries would lock it."""

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Keep recovery out while this holds.

        TokenAwayError where the last recovery failed; UNAVAILABLE where one is under way for too long.
        """
        with self._idle:
            if not self._idle.wait_for(lambda: not self._recovering, self.options.timeout):
                raise unavailable("recovery is under way")
            if self._token is None:
                raise TokenAwayError
            self._users += 1
        try:
            yield
        finally:
            with self._idle:
                self._users -= 1
                self._idle.notify_all()

    def open(self) -> None:
        """Initialise and log in for the first time. ConfigurationError says what is wrong."""
        self._log_in()
        self.generation = 1

    def session(self, *, writable: bool = False) -> pkcs11.Session:
        """Open another session; to be called inside `in_use`."""
        if self._token is None:
            raise unavailable(self._last_failure or "not open")
        return self._token.open(rw=writable)

    def recover(self, seen: int) -> None:
        """Bring the token back after generation `seen` failed; returns at once where another thread did already.

        UNAVAILABLE where it can't be done now, and at once while the pause since the last failure lasts.
        """
        with self._idle:
            if not self._idle.wait_for(lambda: not self._recovering, self.options.timeout):
                raise unavailable("recovery is under way")
            if self.generation > seen and self._token is not None:
                return
            if time.monotonic() < self._not_before:
                raise unavailable(self._last_failure)
            self._recovering = True
        try:
            with self._idle:
                if not self._idle.wait_for(lambda: self._users == 0, self.options.timeout):
                    raise unavailable("an operation hangs in the token")
            self._restart()
        except (CaError, ConfigurationError) as error:
            # Remote readers get no path and no value of the configuration: the log has them.
            _log.warning("token can't be opened", token=self.options.token_label, error=str(error))
            self._last_failure = error.detail if isinstance(error, CaError) else f"{error.key}: {error.remedy}"
            self._not_before = time.monotonic() + self._pause
            self._pause = min(self._pause * 2, _LAST_PAUSE)
            raise unavailable(self._last_failure) from error
        finally:
            with self._idle:
                self._recovering = False
                self._idle.notify_all()

    def _restart(self) -> None:
        self._token = None
        self._keeper = None
        self._module.finalise()
        self._log_in()
        self.generation += 1
        self._pause = _FIRST_PAUSE
        self._last_failure = ""
        _log.warning("token opened again", token=self.options.token_label, generation=self.generation)

    def _log_in(self) -> None:
        options = self.options
        pin = options.pin.read()
        if pin == self._refused_pin:
            raise ConfigurationError(
                str(options.pin), "PIN", None, "was refused, and is not tried again until it changes: a token counts"
            )
        with self._locked():
            library = self._module.initialise()
            try:
                token = self._only_token(library)
                keeper = token.open(rw=True, user_pin=pin)
            except pkcs11.PKCS11Error as error:
                self._module.finalise()
                if isinstance(error, PIN_REFUSED):
                    self._refused_pin = pin
                raise login_failure(error, options.token_label, str(options.pin)) from None
            except BaseException:
                self._module.finalise()
                raise
        self._token, self._keeper = token, keeper

    def _only_token(self, library: "pkcs11._pkcs11.lib") -> pkcs11.Token:
        """The one token of the label. ConfigurationError where there is none, or more than one."""
        tokens = [slot.get_token() for slot in library.get_slots(token_present=True)]
        matching = [token for token in tokens if token.label == self.options.token_label]
        if len(matching) == 1:
            return matching[0]
        there = ", ".join(sorted(repr(token.label) for token in tokens if token.label)) or "none"
        remedy = (
            f"there is no token of this label; labels there are: {there}"
            if not matching
            else f"{len(matching)} tokens have this label; give each its own"
        )
        raise ConfigurationError("token", "label", self.options.token_label, remedy)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One process at a time initialises and logs in: SoftHSM2 rewrites a file of the token then."""
        if self.options.lock_path is None:
            yield
            return
        with self.options.lock_path.open("a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            try:
                yield
            finally:
                fcntl.flock(file, fcntl.LOCK_UN)

    def close(self) -> None:
        """Log out and let go of the module."""
        with self._idle:
            idle = self._idle.wait_for(lambda: self._users == 0, self.options.timeout)
            self._token = None
            self._keeper = None
            self._last_failure = "closed"
            self._not_before = float("inf")
        if idle:  # to finalise a module under an operation that hangs in it crashes the process
            self._module.finalise()
