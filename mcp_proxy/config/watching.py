"""Notices that files of the configuration have changed on disk.

Rules of this file: it asks for facts about names and reads nothing. Asking every ``LOOK_S`` seconds is
deliberate: it needs no thread, has no limit of watches, works on network file systems, and is not
fooled by how a file is replaced. A mounted ConfigMap is swapped by a symbolic link to a directory some
levels above: whoever watches the file that was there at the start never hears of it. What a name
leads to in the end is compared, so edits, renames and swaps all look the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from mcp_proxy.config.files import signature
from mcp_proxy.config.problems import Files, Signature

LOOK_S: Final = 2.0
"""Between two looks. A change is reported after two to four seconds; a kubelet takes up to a minute to
bring it."""


class Watched:
    """Some files, compared with what they were when they were read.

    ``files`` is what the loader says of them (``Loaded.files``, ``ConfigErrors.files``). A file that
    is missing is one more state: when it goes, that is reported once, and when it comes back again.
    """

    __slots__ = ("_known", "_last")

    def __init__(self, files: Mapping[Path, Signature | None]) -> None:
        self.follow(files)

    def follow(self, files: Mapping[Path, Signature | None]) -> None:
        """From now on these files, as they have just been read."""
        self._known: Files = dict(files)
        self._last: Files = self._known

    def look(self) -> bool:
        """Whether something has changed since it was read or reported. Call it every ``LOOK_S`` seconds:
        a change is reported when two looks in a row have seen the same, so that nobody reads a file
        while it is being written."""
        found: Files = {path: signature(path) for path in self._known}
        is_settled, self._last = found == self._last, found
        if not is_settled or found == self._known:
            return False
        self._known = found
        return True
