"""What calls print, printed where their caller does."""

from __future__ import annotations

import sys
from collections import OrderedDict
from typing import Dict, List

REMEMBERED = 1000
"""Calls of which it is known what they have printed."""


class Output:
    """Prints pieces as they are published. A reply says how that began what its call has printed at its last try: what has not come by then is
    printed before the result is there, and not again when it comes."""

    def __init__(self) -> None:
        # By try of a call and stream: characters that were published, and how many of the next ones are printed already.
        self._calls: "OrderedDict[str, Dict[str, List[int]]]" = OrderedDict()

    def piece(self, id: str, name: str, text: str) -> None:
        """Something was published."""
        came = self._of(id, name)
        known = min(came[1], len(text))
        came[0] += len(text)
        came[1] -= known
        self.write(name, text[known:])

    def rest(self, id: str, stdout: str, stderr: str) -> None:
        """A call has ended that printed."""
        for name, printed in (("stdout", stdout), ("stderr", stderr)):
            came = self._of(id, name)
            text = printed[came[0] :]
            came[1] = len(text)
            self.write(name, text)

    def _of(self, id: str, name: str) -> List[int]:
        call = self._calls.setdefault(id, {})
        if len(self._calls) > REMEMBERED:
            self._calls.popitem(last=False)
        return call.setdefault(name, [0, 0])

    @staticmethod
    def write(name: str, text: str) -> None:
        """Writes to this process's own stream."""
        if not text:
            return
        stream = sys.stderr if name == "stderr" else sys.stdout
        try:
            stream.write(text)
            stream.flush()
        except Exception:
            pass  # no such stream, or nobody reads it, or a widget that is gone
