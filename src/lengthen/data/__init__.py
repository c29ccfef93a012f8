"""Documents to tokens to packed blocks with segment boundaries."""
