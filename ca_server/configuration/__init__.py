"""Reads the settings: from where, in which order, and what is said of mistakes."""

from ca_server.configuration.reading import ENVIRONMENT_PREFIX, load_settings

__all__ = ["ENVIRONMENT_PREFIX", "load_settings"]
