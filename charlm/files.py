"""Files that are written whole or not at all, whatever happens meanwhile."""

import os
import pathlib


def write(path: pathlib.Path, content: str | bytes) -> None:
    """Replaces a file, or makes it: a temporary one beside it is written, brought to disk and renamed.

    Raises:
      OSError: it can't be written; what stood there stands.
    """
    temporary = path.parent / f"{path.name}.new"
    try:
        with temporary.open("wb") as file:
            file.write(content.encode("utf-8") if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
