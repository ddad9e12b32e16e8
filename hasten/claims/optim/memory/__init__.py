"""Claims of hasten.optim.memory."""
