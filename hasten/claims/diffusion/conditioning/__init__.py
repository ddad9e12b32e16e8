"""Claims of conditioning."""
