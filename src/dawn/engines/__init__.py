"""From speech to motion and from motion to frames, one engine a model family."""
