"""The laboratory: training, evaluation, conversion of published files."""
