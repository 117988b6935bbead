"""Files and folders of a data set: there or not, inside or outside."""

from __future__ import annotations

import os
import stat
from pathlib import Path, PurePosixPath, PureWindowsPath

from gid_cuda.errors import UserError


class ImageFolder:
    """Says which file names of an annotation file exist in the image folder, and refuses those that lead out of it.

    The folder itself may be a link, to wherever it likes: the config names it, so its owner chose it. What lies in it
    comes with the data set, from an archive perhaps: a file or subfolder there may be a link as long as it points
    inside the folder; one that points outside is refused, as `..` and absolute names are. Who keeps images elsewhere,
    file by file, names that place as the folder, or copies them (or makes hard links).

    Whole folders are listed instead of asking for each file: COCO has 118,000 of them, often on a network drive.
    """

    def __init__(self, folder: Path, named_in: Path) -> None:
        self.folder = folder
        self._named_in = named_in
        self._root = Path(os.path.realpath(folder))
        self._listed: dict[str, dict[str, bool]] = {}

    def has(self, name: str) -> bool:
        """Whether the file is there. UserError for a name that leaves the folder."""
        path = PurePosixPath(name.replace("\\", "/"))
        if ".." in path.parts or "\0" in name or path.is_absolute() or PureWindowsPath(name).drive:
            self._refuse(name)
        try:
            os.fsencode(name)
        except UnicodeEncodeError:  # a lone surrogate: JSON can hold it, a file system cannot
            return False
        parent, _, base = name.rpartition("/")
        if parent not in self._listed:
            self._listed[parent] = self._list(parent, name)
        is_link = self._listed[parent].get(base)
        if is_link is None:  # not listed under this spelling; the file system may take upper and lower case as one
            try:
                if not stat.S_ISREG(os.stat(self.folder / name).st_mode):
                    return False
            except OSError:
                return False
        if is_link is not False:
            self._require_inside(self.folder / name, name)
        return True

    def stems(self) -> dict[str, str]:
        """File names of the folder itself by their stem; .jpg wins where there are several."""
        self._listed.setdefault("", self._list("", ""))
        names = sorted(self._listed[""], key=lambda name: (name.lower().endswith((".jpg", ".jpeg")), name))
        return {PurePosixPath(name).stem: name for name in names}

    def _list(self, parent: str, name: str) -> dict[str, bool]:
        where = self.folder / parent
        self._require_inside(where, name)
        try:
            with os.scandir(where) as entries:
                return {entry.name: entry.is_symlink() for entry in entries if entry.is_file()}
        except OSError:
            return {}

    def _require_inside(self, path: Path, name: str) -> None:
        real = Path(os.path.realpath(path))
        if real != self._root and self._root not in real.parents:
            self._refuse(name)

    def _refuse(self, name: str) -> None:
        raise UserError(
            f"{self._named_in} names the image {name!r}, which leads out of the image folder {self.folder}: "
            "names must be relative and stay inside it; mend the name, or copy the file where it is a link"
        )


def nested(one: Path, other: Path) -> bool:
    """Whether one of two folders lies in the other, or is it."""
    a, b = os.path.realpath(one), os.path.realpath(other)
    return os.path.commonpath([a, b]) in (a, b)


def require_folder(path: Path, what: str, advice: str) -> None:
    if not path.is_dir():
        raise UserError(f"{what} not found: looked for the folder {path}{_here(path)}; {advice}")


def require_file(path: Path, what: str, advice: str) -> None:
    if not path.is_file():
        raise UserError(f"{what} not found: looked for {path}{_here(path)}; {advice}")


def _here(path: Path) -> str:
    return "" if path.is_absolute() else f" from {Path.cwd()}"
