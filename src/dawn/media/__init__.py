"""Files <-> arrays: pictures, sound and video, with PyAV and Pillow only.

``image.py`` pictures · ``audio.py`` speech in · ``video.py`` video in · ``writer.py`` video out · ``files.py`` what
they share: opening, damaged packets, results that appear whole or not at all.
"""

from dawn.media.audio import SoundTrack, read_speech, speech_from_array
from dawn.media.image import contact_sheet, read_image, save_png
from dawn.media.video import VideoReader, read_video
from dawn.media.writer import VideoWriter

__all__ = [
    "SoundTrack",
    "VideoReader",
    "VideoWriter",
    "contact_sheet",
    "read_image",
    "read_speech",
    "read_video",
    "save_png",
    "speech_from_array",
]
