"""Probability paths between data and noise."""
