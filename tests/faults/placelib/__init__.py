"""Code that runs in the place of a front of a real server."""
