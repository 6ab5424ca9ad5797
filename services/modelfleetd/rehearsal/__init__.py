"""A whole fleet in virtual time: the domains of the four services and the launcher's own rounds, on stores in memory.

Nothing here is imported by a service; `modelfleetd simulate` and the tests are who uses it.
"""
