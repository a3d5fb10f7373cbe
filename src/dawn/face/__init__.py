"""What a face is: the mesh and its geometry."""
