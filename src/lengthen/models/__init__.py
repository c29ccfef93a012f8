"""A base: which files MODEL names, how they are loaded, what tells its weights from others."""
