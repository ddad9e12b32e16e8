"""What changes gradients before, or updates after, the step of any optimizer."""
