"""Clients that mean no good, and what they cost the server; scripts/bench/limits.py measures with them."""
