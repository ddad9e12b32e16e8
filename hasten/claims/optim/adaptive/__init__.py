"""Claims of hasten.optim.adaptive."""
