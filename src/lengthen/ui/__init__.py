"""The web page: a tab to chat with a model about documents, and one to extend a model's context."""
