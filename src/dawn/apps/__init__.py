"""Programs: the command line, the studio, the HTTP service, batches, plots."""
