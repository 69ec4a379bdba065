"""Durable files: written whole or not at all, with errors that say what the disk refused."""

import os
import re
import shutil
from pathlib import Path

from safetensors import SafetensorError

DISK_ERRORS = (OSError, SafetensorError)  # safetensors reports a full disk in an exception of its own


class RunError(OSError):
    """The disk refused (full, read-only, gone): nothing that the caller wrote wrongly, so not a `UsageError`.

    The message says what failed, why, what is kept, and what to do; the command line prints it and exits with 1.
    """


def write_atomic(path: Path, content: str | bytes) -> None:
    """Replace `path` by `content`, durably: a reader, or a crash at any instant, sees the old file or the new one.

    Raises RunError if the disk refuses; the old file is then untouched.
    """
    data = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync(path.parent)
    except OSError as error:
        raise RunError(f"cannot write {path}: {reason(error, path.parent)}. The file is as it was before.") from error
    finally:
        temporary.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Flush a file, or a folder's list of names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Flush every file and folder below `folder`, and itself, to the disk."""
    for path in [*folder.rglob("*"), folder]:
        sync(path)


def reason(error: BaseException, folder: Path) -> str:
    """What the disk answered; for a full one, how much room is left. `folder` lies on that disk."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    if not re.search(r"no space left|quota exceeded|file too large", text, re.IGNORECASE):
        return text
    try:
        usage = shutil.disk_usage(folder)
    except OSError:
        return text
    return f"{text} ({human_bytes(usage.free)} free of {human_bytes(usage.total)} on its disk)"


def human_bytes(count: float) -> str:
    """3 -> '3 B', 2_500_000 -> '2.5 MB' (powers of 1000)."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
