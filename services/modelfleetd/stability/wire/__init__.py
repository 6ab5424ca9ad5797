"""Protobuf ↔ domain, where field names alone do not say it. A file per concept."""
