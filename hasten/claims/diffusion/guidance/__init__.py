"""Claims of guidance."""
