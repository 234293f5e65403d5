"""Find out what SOURCE is by looking at what it holds."""

from pathlib import Path

from alexprep.errors import PrepareError
from alexprep.sources import WHAT_IS_LOOKED_FOR, Source
from alexprep.sources_folder import folder_source


def find_source(path: Path) -> Source:
    """List every sample of the source at `path`; PrepareError says what was looked for."""
    if not path.exists():
        raise PrepareError(f"{path} does not exist. Give the folder that holds the images.")
    if not path.is_dir():
        raise PrepareError(f"{path} is a file, not a source of images. {WHAT_IS_LOOKED_FOR}")
    return folder_source(path)
