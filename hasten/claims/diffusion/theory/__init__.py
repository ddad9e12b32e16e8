"""Claims of the analyses of samplers."""
