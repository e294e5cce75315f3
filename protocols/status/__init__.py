"""Revocation status over HTTP: OCSP (RFC 6960), CRLs and CA certificates (RFC 5280)."""
