"""How to open a token."""

from dataclasses import dataclass
from pathlib import Path

from hsm.pin import PinSource


@dataclass(frozen=True, slots=True)
class TokenOptions:
    """A token by module path and label; times in seconds."""

    module: Path
    token_label: str
    pin: PinSource
    threads: int = 2
    softhsm_configuration: Path | None = None
    """Exported as SOFTHSM2_CONF before the module is initialised."""
    lock_path: Path | None = None
    """File locked around initialising and logging in: two processes that log in at once fail on SoftHSM2."""
    timeout: float = 10.0
    """For one operation, waiting included."""
    probe_interval: float = 1.0
    """A key that was not looked at for so long is looked at again before it signs."""
    queue_limit: int = 4096
    """Operations that may wait; beyond it the token is busy."""
