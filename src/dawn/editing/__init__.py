"""Hand-made changes: edits of motion, and a video whose frames are drawn anew only where the motion changed."""
