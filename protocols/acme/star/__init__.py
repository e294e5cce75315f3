"""Orders whose certificates the server renews by itself until they end or are canceled (RFC 8739)."""
