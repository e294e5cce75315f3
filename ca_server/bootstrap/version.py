"""The software's name and version, as audit events carry it."""

from importlib.metadata import PackageNotFoundError, version

try:
    SOFTWARE = f"ca-server/{version('ca-server')}"
except PackageNotFoundError:  # running from a checkout that was not installed
    SOFTWARE = "ca-server/0+checkout"
