"""Conversations about documents: a session, a model shared by several, a web page."""
