"""Claims of hasten.optim.averaging."""
