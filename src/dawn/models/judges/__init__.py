"""Networks that judge: identity, sync."""
