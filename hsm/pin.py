"""Where the token's PIN comes from: never an argument, never a log."""

import os
import secrets
import string
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from ca_server.domain.errors import ConfigurationError

_ALPHABET = string.ascii_letters + string.digits


@dataclass(frozen=True, slots=True)
class PinSource:
    """A file or an environment variable that has the PIN; reads it anew for each log-in."""

    file: Path | None = None
    environment: str = ""

    @classmethod
    def from_file(cls, path: Path) -> Self:
        """A file whose content is the PIN."""
        return cls(file=path)

    @classmethod
    def from_environment(cls, name: str) -> Self:
        """An environment variable whose value is the PIN."""
        return cls(environment=name)

    def read(self) -> str:
        """The PIN. ConfigurationError names file or variable where it can't be had."""
        if self.file is None:
            pin = os.environ.get(self.environment, "").strip()
            where = f"environment {self.environment}"
        else:
            where = str(self.file)
            try:
                pin = self.file.read_text("utf-8").strip()
            except (OSError, UnicodeDecodeError) as error:
                reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
                raise ConfigurationError(where, "PIN", None, f"can't be read ({reason})") from None
        if not pin:
            raise ConfigurationError(where, "PIN", None, "is empty; put the token's user PIN there")
        return pin

    def __str__(self) -> str:
        return str(self.file) if self.file is not None else f"environment {self.environment}"


def generate_pin(length: int = 24) -> str:
    """A PIN with more than 128 bits of entropy, of letters and digits, which every token takes."""
    return "".join(secrets.choice(_ALPHABET) for _ in range(length))
