"""What can be said of inputs before, and of videos after."""
