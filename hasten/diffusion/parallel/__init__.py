"""Samplers that compute several steps at once."""
