"""Makes SoftHSM2 tokens for tests and looks at them from outside."""
