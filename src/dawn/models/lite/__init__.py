"""The lite model family."""
