"""What happens around every call, outermost first: tracing, errors, deadline, identity, decoding, permission,
validation, limiter. One duty a file; unary and streaming methods alike.
"""
