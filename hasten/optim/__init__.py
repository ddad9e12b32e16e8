"""Optimizers, learning-rate schedules, gradient filters and weight averages for PyTorch training."""
