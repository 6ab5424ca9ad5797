"""Migrations of a schema that only the kit's tests have."""
