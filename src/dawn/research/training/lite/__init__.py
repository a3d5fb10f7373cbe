"""Recipes of the lite networks."""
