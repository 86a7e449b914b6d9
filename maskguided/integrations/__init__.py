"""Bridges to other packages; each is imported only by the one who uses it."""
