"""Claims of the methods that compute many steps or tokens at once."""
