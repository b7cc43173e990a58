"""Questions to the Hugging Face hub, limited to a few seconds."""

from __future__ import annotations

import difflib
import queue
import threading
from collections.abc import Sequence

SECONDS = 3.0  # the longest wait for the hub's first answer


def nearest(name: str, known: Sequence[str]) -> str | None:
    """The known name that `name` is probably a slip of; None for a known one and for others."""
    near = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.75)
    return near[0] if near and name not in known else None


def hub_error(name: str, revision: str | None) -> Exception | None:
    """Asks the hub for a model once, and returns its error, or None if it has the model.

    Its clients try for about a minute when the hub can't be reached. A thread bounds the whole wait,
    because no timeout of a request covers the search for the host's address.
    """
    import huggingface_hub

    answers: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()

    def ask() -> None:
        try:
            url = huggingface_hub.hf_hub_url(name, "config.json", revision=revision)
            huggingface_hub.get_hf_file_metadata(url, timeout=SECONDS)
        except Exception as error:  # errors of several HTTP libraries
            answers.put(error)
        else:
            answers.put(None)

    threading.Thread(target=ask, daemon=True).start()
    try:
        return answers.get(timeout=SECONDS)
    except queue.Empty:
        return TimeoutError(f"no answer within {SECONDS:g} seconds")
