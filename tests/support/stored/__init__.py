"""A fleet in virtual time, repeated on real stores: the services themselves on PostgreSQL."""
