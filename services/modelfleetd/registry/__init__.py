"""The registry: the ledger of what is live, what for, whose, and how critical, and of every change of it."""
