"""Training: one loop, a recipe for each network."""
