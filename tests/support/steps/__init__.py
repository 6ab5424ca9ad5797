"""The sweep of steps: every strategy in virtual time, with something that happens at a place that is counted.

`cases` are the launches, `stories` what happens to them, `course` carries one through it, `watch` and `oracle` say what
was wrong; `tests/faults/test_planted_bugs.py` shows that they find what they are there for.
"""
