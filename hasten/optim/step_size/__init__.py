"""Rules that find their own step size."""
