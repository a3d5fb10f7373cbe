"""Recipes of the published networks."""
