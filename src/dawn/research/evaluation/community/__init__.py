"""The measures that papers report (FID, FVD, LSE-C, LSE-D), by the published networks, where the user has their files."""
