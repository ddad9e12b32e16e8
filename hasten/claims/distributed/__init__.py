"""Claims of the distributed and federated methods."""
