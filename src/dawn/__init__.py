"""DAWN: talking-head video from one portrait and one speech recording, all frames at once (arXiv 2410.13726)."""

__version__ = "0.1.0"
DEFAULT_PRESET = "lite-256"
"""The shipped preset that is used unless another is named."""
