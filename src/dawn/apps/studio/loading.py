"""The model, loaded behind the page, so that the page opens first."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from dawn.errors import DawnError

if TYPE_CHECKING:
    from dawn.pipeline import Dawn


class Loader:
    """One model for all sessions. ``turn`` is held by whoever uses it: one video at a time."""

    def __init__(self, preset: str, device: str) -> None:
        self.preset, self.device = preset, device
        self.turn = threading.Lock()
        self._ready = threading.Event()
        self._model: Dawn | None = None
        self._error: BaseException | None = None

    def start(self, warm: Callable[[], object] = lambda: None) -> None:
        """Begin to load, in a thread of its own; ``warm`` is called at its end, while nobody waits."""
        threading.Thread(target=self._load, args=(warm,), name="studio-loading", daemon=True).start()

    def _load(self, warm: Callable[[], object]) -> None:
        try:
            from dawn.pipeline import Dawn

            self._model = Dawn.from_pretrained(self.preset, self.device)
            warm()
        except BaseException as error:  # shown by whoever waits for the model
            self._error = error
        self._ready.set()

    def get(self) -> Dawn:
        """The model, as soon as it is there. Raises DawnError if it cannot be loaded."""
        self._ready.wait()
        if isinstance(self._error, DawnError):
            raise self._error
        if self._model is None:
            error = self._error
            raise DawnError(f"the model cannot be loaded: unexpected {type(error).__name__}: {error}") from error
        return self._model
