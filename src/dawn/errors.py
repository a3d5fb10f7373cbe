"""Typed errors. Every user-visible failure is a ``DawnError`` whose message is one line: the value and the remedy.

The command line prints the message and exits with ``DawnError.exit_code``; the Python API raises it.
"""

from __future__ import annotations


class DawnError(Exception):
    """Base of everything this package raises on purpose."""

    exit_code = 2


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
