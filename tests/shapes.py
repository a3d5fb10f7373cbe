"""The checker of shapes and types that ``conftest`` puts around all functions of the networks."""

from __future__ import annotations

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
"""A whole number may stand where a float is asked for, as everywhere in Python."""
