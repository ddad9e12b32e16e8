"""Claims of hasten.optim.recipes."""
