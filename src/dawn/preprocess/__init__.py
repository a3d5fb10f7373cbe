"""From media to faces and training clips."""
