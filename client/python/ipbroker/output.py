"""What calls print, printed where their caller does."""

from __future__ import annotations

import sys
from collections import OrderedDict
from typing import Dict, Optional

REMEMBERED = 1000
"""Calls of which it is known what they have printed."""


class Output:
    """Prints pieces as they are published. A reply says what its call has printed in all: what has not come by then is
    printed before the result is there, and not again when it comes."""

    def __init__(self) -> None:
        # Characters that were printed, by call; None: the call has ended.
        self._shown: "OrderedDict[str, Optional[Dict[str, int]]]" = OrderedDict()

    def piece(self, id: str, name: str, text: str) -> None:
        """Something was published."""
        shown = self._shown.get(id, {})
        if shown is None:
            return
        shown[name] = shown.get(name, 0) + len(text)
        self._remember(id, shown)
        self.write(name, text)

    def rest(self, id: str, stdout: str, stderr: str) -> None:
        """A call has ended that printed."""
        shown = self._shown.get(id) or {}
        for name, printed in (("stdout", stdout), ("stderr", stderr)):
            text = printed[shown.get(name, 0) :]
            if text:
                self.write(name, text)
        self._remember(id, None)

    def _remember(self, id: str, shown: Optional[Dict[str, int]]) -> None:
        self._shown[id] = shown
        while len(self._shown) > REMEMBERED:
            self._shown.popitem(last=False)

    @staticmethod
    def write(name: str, text: str) -> None:
        """Writes to this process's own stream."""
        stream = sys.stderr if name == "stderr" else sys.stdout
        try:
            stream.write(text)
            stream.flush()
        except (AttributeError, OSError, ValueError):
            pass  # no such stream, or nobody reads it
