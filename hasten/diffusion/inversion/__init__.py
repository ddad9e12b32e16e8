"""From data back to the noise that a model generates them from."""
