"""Checks of inputs before a run, and of videos after it."""
