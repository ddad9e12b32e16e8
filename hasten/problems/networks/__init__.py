"""Small trained networks, for problems and claims that need one: trained once per machine, kept in the user's cache."""

from hasten.problems.networks.recipe import Recipe, cached_file, network, recipe, recipes, train

__all__ = ["Recipe", "cached_file", "network", "recipe", "recipes", "train"]
