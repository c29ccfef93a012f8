"""Using an extended model."""
