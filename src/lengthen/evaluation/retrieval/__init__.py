"""What is found at which length and depth: passkey, needles in a haystack, BABILong."""
