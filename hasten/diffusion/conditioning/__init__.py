"""Conditions of a trained model from outside: maps that samples shall match."""
