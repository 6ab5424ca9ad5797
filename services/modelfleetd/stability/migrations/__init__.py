"""Migrations of the schema `stability`."""
