"""Exact and bounded errors of samplers, and the samplers that come from the analysis."""
