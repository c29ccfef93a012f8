"""Text with facts scattered in it and questions about them, as training sequences."""
