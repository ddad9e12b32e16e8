"""Searching for what a sampler should do, by scoring what it makes."""
