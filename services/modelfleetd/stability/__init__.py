"""Stability: takes predictions and labels in, keeps their sufficient statistics per minute, and judges."""
