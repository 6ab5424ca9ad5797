"""Capacity: how much a model needs, whose capacity it is, and whether it fits."""
