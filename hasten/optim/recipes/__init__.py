"""Training recipes: losses, attacks, several objectives."""
