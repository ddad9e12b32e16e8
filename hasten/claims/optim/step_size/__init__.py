"""Claims of hasten.optim.step_size."""
