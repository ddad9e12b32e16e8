"""Claims of the papers on optimizers, schedules, filters and averages."""
