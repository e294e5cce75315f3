"""The `ca-server` command: one file per noun."""
