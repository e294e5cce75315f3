"""The private transparency log over HTTP (C2SP tlog-tiles)."""
