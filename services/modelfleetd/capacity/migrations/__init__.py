"""Migrations of the schema `capacity`, oldest first; forward only."""
