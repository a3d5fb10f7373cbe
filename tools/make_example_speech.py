"""Make ``examples/speech.wav`` with the Kokoro-82M voice "af_heart".

    python tools/make_example_speech.py KOKORO.onnx VOCAB.json af_heart.bin examples/speech.wav

Where the three files come from stands in ``examples/README.md``. Needs ``onnxruntime`` and the program ``espeak-ng``,
neither of which the package itself needs. Sentences are spoken one by one and joined with exact silence, so the pause
in the recording is truly silent: the picture should close its mouth there.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import wave
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

SENTENCES = (
    "Hello! A moment ago, I was only a photograph.",
    "Now a small program listens to this voice, and moves my whole face, all frames at once.",
)
RATE_HZ = 24_000
EDGE_S = 0.3
PAUSE_S = 0.6
PEAK_DBFS = -3.0
FADE_S = 0.01
AUDIBLE = 0.01
"""Share of the peak below which a voice's own lead-in and tail are cut."""

# Kokoro was trained on Misaki's alphabet: one letter a diphthong or affricate, no length marks, "T" the tapped t.
KOKORO_LETTERS = (
    ("aɪ", "I"),
    ("aʊ", "W"),
    ("eɪ", "A"),
    ("ɔɪ", "Y"),
    ("oʊ", "O"),
    ("dʒ", "ʤ"),
    ("tʃ", "ʧ"),
    ("ɜːɹ", "ɜɹ"),
    ("ɜː", "ɜɹ"),
    ("ɚ", "əɹ"),
    ("ɐ", "ə"),
    ("ɾ", "T"),
    ("r", "ɹ"),
    ("ː", ""),
)


def phonemes(sentence: str) -> str:
    """American English phonemes in Kokoro's alphabet; punctuation, which espeak-ng swallows, is kept for the melody."""
    parts: list[str] = []
    for part in re.split(r"([,.!?])", sentence):
        if re.search(r"\w", part):
            command = ["espeak-ng", "-q", "--ipa", "-v", "en-us", part]
            part = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
        parts.append(part if part in ",.!?" else (" " if parts else "") + part)
    text = "".join(parts)
    for ipa, letter in KOKORO_LETTERS:
        text = text.replace(ipa, letter)
    return text


def speak(session: onnxruntime.InferenceSession, tokens: list[int], styles: NDArray[np.float32]) -> NDArray[np.float32]:
    """Tokens -> (L,) float32 at 24 kHz, cut to the audible part with short fades."""
    style = styles[len(tokens)][None]
    feed = {"tokens": np.array([[0, *tokens, 0]], np.int64), "style": style, "speed": np.ones(1, np.float32)}
    samples = session.run(None, feed)[0].reshape(-1).astype(np.float32)
    audible = np.flatnonzero(np.abs(samples) > AUDIBLE * np.abs(samples).max())
    fade = int(FADE_S * RATE_HZ)
    samples = samples[max(audible[0] - fade, 0) : audible[-1] + fade].copy()
    ramp = np.linspace(0, 1, fade, dtype=np.float32)
    samples[:fade] *= ramp
    samples[-fade:] *= ramp[::-1]
    return samples


def main() -> None:
    model, vocabulary, voice, out = (Path(argument) for argument in sys.argv[1:5])
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    known = json.loads(vocabulary.read_text(encoding="utf-8"))
    known = known.get("vocab", known)
    styles = np.fromfile(voice, np.float32).reshape(-1, 256)
    edge, pause = (np.zeros(round(seconds * RATE_HZ), np.float32) for seconds in (EDGE_S, PAUSE_S))
    pieces = [edge]
    for sentence in SENTENCES:
        text = phonemes(sentence)
        print(text)
        pieces += [speak(session, [known[letter] for letter in text], styles), pause]
    samples = np.concatenate([*pieces[:-1], edge])
    samples *= 10 ** (PEAK_DBFS / 20) / np.abs(samples).max()
    with wave.open(str(out), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE_HZ)
        file.writeframes((samples * 32767).round().astype("<i2").tobytes())
    print(f"{out}: {len(samples) / RATE_HZ:.2f} s")


if __name__ == "__main__":
    main()
