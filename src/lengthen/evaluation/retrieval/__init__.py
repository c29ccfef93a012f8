"""Retrieval by length and depth: passkey, needles in a haystack, BABILong."""
