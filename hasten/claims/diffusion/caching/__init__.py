"""Claims of feature caching and token pruning."""
