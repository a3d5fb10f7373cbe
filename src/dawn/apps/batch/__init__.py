"""``dawn batch``: a CSV of portraits and recordings → a folder of videos, here or on a Ray cluster.

Every finished row is a line of ``jobs.jsonl`` in the folder of the videos, so the same command again makes only what is
missing or changed. A row counts as changed if one of its options, the size or time of change of an input file, or the
preset behind it is another. A row that failed waits for a change, or for ``retry_failed``.
"""
