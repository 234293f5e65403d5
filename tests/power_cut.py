"""What is on a disk after a power cut in the middle of a list of changes (tests/traced.py).

Of a file that was not synced since it was written, its last synced bytes; of the names in a folder
that was not synced since, any that were there in between: all changes of names, none, or for each
folder those up to some point. Journals of Linux promise more than that, POSIX does not.

Paths are relative to the folder, which itself is "".
"""

from typing import NamedTuple

FOLDER = -1


class Name(NamedTuple):
    """A change of names that is not on the disk yet: what `path` is now, None if nothing."""

    folder: str
    path: str
    inode: int | None
    former: str = ""  # of a file that was renamed


class Disk:
    """The state of a folder under a list of changes; `files` has what was there before, by path."""

    def __init__(self, files):
        self.data = dict(enumerate(data for data in files.values() if data is not None))
        numbers = iter(self.data)
        self.names = {
            path: FOLDER if data is None else next(numbers) for path, data in files.items()
        }
        self.synced_names = dict(self.names)
        self.pending = []

    def apply(self, change):
        """Carry out one change."""
        kind, path, *more = change
        if kind == "create":
            self.data[len(self.data)] = b""
            self._name(path, len(self.data) - 1)
        elif kind == "mkdir":
            self._name(path, FOLDER)
        elif kind == "remove":
            self._name(path, None)
        elif kind == "link":
            self._name(more[0], self.names.get(path))
        elif kind == "rename":
            self._name(more[0], self.names.pop(path), path)
        elif kind == "sync" and more[0] is None:
            self.pending = _settle(self.synced_names, self.pending, path)
        elif kind == "sync":
            self.data[self.names[path]] = more[0]

    def _name(self, path, inode, former=""):
        if inode is None:
            self.names.pop(path, None)
        else:
            self.names[path] = inode
        self.pending.append(Name(path.rpartition("/")[0], path, inode, former))

    def after_power_cut(self, chance=None, *, names=True):
        """The files that are on the disk: with all changes of names, none, or drawn ones."""
        found = dict(self.synced_names)
        folders = sorted({change.folder for change in self.pending})
        counts = {folder: sum(c.folder == folder for c in self.pending) for folder in folders}
        if chance is not None:
            counts = {folder: chance.randint(0, count) for folder, count in counts.items()}
        elif not names:
            counts = dict.fromkeys(folders, 0)
        for change in self.pending:
            if counts[change.folder]:
                counts[change.folder] -= 1
                _rename(found, change)
        return self._contents(found)

    def _contents(self, names):
        whole = {"": FOLDER}
        for path in sorted(names):  # a folder before what is in it
            if path.rpartition("/")[0] in whole:
                whole[path] = names[path]
        del whole[""]
        return {p: None if inode == FOLDER else self.data[inode] for p, inode in whole.items()}


def _settle(names, pending, folder):
    """Bring the changes of a folder to `names`; those that are left."""
    for change in pending:
        if change.folder == folder:
            _rename(names, change)
    return [change for change in pending if change.folder != folder]


def _rename(names, change):
    names.pop(change.former, None)
    if change.inode is None:
        names.pop(change.path, None)
    else:
        names[change.path] = change.inode
