"""Reading and continuing token sequences: prefill, key/value caches, generation."""
