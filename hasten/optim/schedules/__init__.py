"""Learning-rate schedules and batch-size control."""
