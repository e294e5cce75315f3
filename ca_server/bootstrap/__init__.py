"""The composition root: puts adapters, core and front-ends together, and nothing else does."""
