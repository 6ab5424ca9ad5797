"""Versions of the schema `launcher`, forward only."""
