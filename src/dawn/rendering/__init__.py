"""From motion to the pictures that are shown."""
