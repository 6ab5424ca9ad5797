"""How the local commands end early: with one line for a person, never with a traceback."""

from __future__ import annotations


class CannotRun(Exception):
    """The command cannot do what it was asked; the message says why and what to do, in one line."""
