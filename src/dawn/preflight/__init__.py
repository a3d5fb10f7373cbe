"""What can be said of a portrait and a recording before time is spent on them (``dawn check``), and of the finished video."""
