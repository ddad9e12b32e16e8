"""Methods for games and variational inequalities."""
