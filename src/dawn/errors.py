"""Typed errors. Every user-visible failure is a ``DawnError`` whose message is one line: the value and the remedy.

A message names an option as the keyword argument that it is in Python, in backticks: `face=2`, or `face` alone. What is no
option never stands in backticks. Every other surface writes it in its own language: `apps.surfaces` makes ``--face 2`` of it
on the command line. The Python API raises the error as it is; the command line exits with ``DawnError.exit_code``.
"""

from __future__ import annotations

import re

NAMED_OPTION = re.compile(r"`([a-z][a-z0-9_]*)(?:=([^`]*))?`")
"""An option in a message; groups: its name, its value if there is one."""


class DawnError(Exception):
    """Base of everything this package raises on purpose."""

    exit_code = 2

    @property
    def option(self) -> str | None:
        """The first option that the message names, as Python calls it; None if it names none."""
        named = NAMED_OPTION.search(str(self))
        return named[1] if named else None


class ConfigError(DawnError):
    """A configuration, option or preset that cannot be used."""


class InputError(DawnError):
    """A file given by the user that cannot be used."""


class ImageError(InputError):
    """Not an image, unreadable, truncated or too large."""


class AudioError(InputError):
    """No usable sound: missing, empty, silent, too short, too long or not finite."""


class VideoError(InputError):
    """No usable moving picture."""


class FaceError(InputError):
    """The picture has no face that can be animated."""


class NoFaceError(FaceError):
    """No face was found."""


class SeveralFacesError(FaceError):
    """More than one face was found and none was chosen."""


class FaceTooSmallError(FaceError):
    """The face covers too few pixels."""


class ExtremePoseError(FaceError):
    """The head is turned too far away from the camera."""


class MotionError(InputError):
    """A motion file that cannot be read, or that does not fit the model."""


class CheckpointError(DawnError):
    """Weights that are missing, damaged, or of another model."""


class OutputError(DawnError):
    """The result cannot be written."""


def missing_extra(package: str, extra: str) -> ConfigError:
    """Make the error for a package of an extra that is not installed.

    The distribution `dawn` of PyPI is another project, so the remedy is an install from the checkout.
    """
    return ConfigError(
        f"the {package} package is missing: say pip install -e '.[{extra}]' in the folder of this repository"
    )
