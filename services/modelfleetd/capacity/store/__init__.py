"""Every SQL statement of capacity. Reads take a database or an open transaction; whatever locks or writes takes a
transaction.

Locks are taken in one order, so that nobody waits in a circle: request, reservation or loan, balances of the pool
itself (by pool, flavor, region), balances of its organisation (in the same order), pool.
"""
