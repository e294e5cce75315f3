"""What the interoperability tests stand on: a name server, a challenge web server, a CA under test, an ACME client."""
