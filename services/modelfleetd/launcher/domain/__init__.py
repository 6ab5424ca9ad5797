"""What a launch is, what it plans, and what it does next. Pure: standard library, errors and names."""
