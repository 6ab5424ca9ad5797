"""What every server needs, one duty a file. Used by a service's app, api, store and workers, never by its domain."""
