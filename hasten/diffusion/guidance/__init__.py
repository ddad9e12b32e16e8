"""Guidance: steering a conditional model towards its condition."""
