"""The registry's schema, forward only."""
