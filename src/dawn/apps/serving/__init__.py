"""``dawn serve``: talking-head videos over HTTP (docs/http.md)."""
