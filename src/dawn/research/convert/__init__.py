"""Parameters of the published checkpoints under the names of this package's networks."""
