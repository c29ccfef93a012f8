"""Conversations about documents: a session, and a model shared by several people."""
