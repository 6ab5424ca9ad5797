"""What stability knows without a network or a database: numbers in, numbers out."""
