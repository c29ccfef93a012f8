"""Many adapters over one base: the engine that batches them, and its HTTP API."""
