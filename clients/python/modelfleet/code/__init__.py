"""The fleet as files: read and written, compared with the ledger, planned, applied and kept in step."""
