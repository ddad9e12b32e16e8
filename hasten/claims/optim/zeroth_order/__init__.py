"""Claims of hasten.optim.zeroth_order."""
