"""Claims of hasten.optim.schedules."""
