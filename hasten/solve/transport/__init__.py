"""Methods for entropic optimal transport."""
