"""Samplers that go from noise to data one step after the other."""
