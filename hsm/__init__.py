"""Keys in a PKCS#11 token: the adapter of the core's KeyStore and SigningKey ports."""
