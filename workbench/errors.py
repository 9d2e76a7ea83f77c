"""Errors a user is meant to read.

Every one is a single sentence that names the offending value and the remedy; the command line prints it without a
traceback and exits with 2. Anything else that escapes is a defect of ours and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class WorkbenchError(Exception):
    """Base of all errors meant for the user."""


class InputError(WorkbenchError, ValueError):
    """A value the user gave is unusable: a spec key, a sample, a model path, a head index."""


class CapabilityError(WorkbenchError):
    """The model lacks something the analysis needs; running it would give a wrong number."""


class StoreError(WorkbenchError):
    """The artifact store cannot do what was asked."""


class NotFound(StoreError, KeyError):
    """No artifact, version, tag or payload of that name."""

    def __str__(self) -> str:  # KeyError would print the repr
        return str(self.args[0]) if self.args else ""


class CorruptArtifact(StoreError):
    """Bytes in the store are not the bytes that were committed."""


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """Return `` Did you mean 'x'?`` (leading space) for the closest choice, or an empty string."""
    close = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""
