"""`python -m ca_server`, and the `ca-server` command."""

from ca_server.cli.app import main

__all__ = ["main"]

if __name__ == "__main__":
    main()
