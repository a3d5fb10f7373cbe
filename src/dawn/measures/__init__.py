"""Numbers of frames, motion and sound."""
