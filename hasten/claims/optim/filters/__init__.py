"""Claims of hasten.optim.filters."""
