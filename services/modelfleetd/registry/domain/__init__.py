"""What the registry decides, without I/O: standard library, errors and names only."""
