"""The published model family."""
