"""Every SQL statement of capacity. Reads take a database or an open transaction; whatever locks or writes takes a
transaction.

Locks are taken in one order, so that nobody waits in a circle: request, reservation, balances (by pool, flavor,
region), pool.
"""
