"""Measuring presets on prepared clips."""
