"""Claims of the searches."""
