"""How good are generated videos: measures, and the protocol that applies them to a preset or to a folder."""
