"""Kills a real server under load, and holds what is left against what clients and the token saw."""
