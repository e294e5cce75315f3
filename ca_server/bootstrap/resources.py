"""Files that the package ships: the configuration template, the profiles, and what makes the embedded token."""

from pathlib import Path

import ca_server
from ca_server.domain.errors import ConfigurationError


def shipped_configuration() -> Path:
    """The folder with ca-server.toml and profiles/: inside the wheel, or config/ of a checkout.

    ConfigurationError where neither is there, or where the three packages stand in different places.
    """
    return _shipped("config", "ca-server.toml")


def shipped_softhsm() -> Path:
    """The folder with the template of SoftHSM2's configuration: inside the wheel, or softhsm/ of a checkout.

    ConfigurationError as above.
    """
    return _shipped("softhsm", "softhsm2.conf")


def _shipped(name: str, file: str) -> Path:
    package = Path(ca_server.__file__).resolve().parent
    _check_one_place(package.parent)
    for folder in (package / f"_{name}", package.parent / name):
        if (folder / file).is_file():
            return folder
    raise ConfigurationError(str(package), f"_{name}", None, "the installation is incomplete; install ca-server again")


def _check_one_place(root: Path) -> None:
    """`hsm` and `protocols` are common names: another package of that name must not stand before ours."""
    import hsm  # noqa: PLC0415 - only here, to learn where they come from
    import protocols  # noqa: PLC0415

    for package in (hsm, protocols):
        place = Path(str(package.__file__)).resolve().parent.parent
        if place != root:
            raise ConfigurationError(
                str(place),
                package.__name__,
                None,
                f"another package of this name hides ours in {root}; install ca-server in an environment of its own",
            )
