"""Faults of a running server are tested with the library of the client tests."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent / "interop"))

from interoplib.fixtures import ca_server_command, enroll, open_folder, surroundings

__all__ = ["ca_server_command", "enroll", "open_folder", "surroundings"]
