"""Files that are there whole or not at all, whoever is killed."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import socket
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import psutil

TEMPORARY = ".tmp"

_CLOCK_S = 10.0  # by how much a process's start may seem to move when the clock is set
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}  # a file system without hard links


def write_whole(path: Path, write: Callable[[Any], object]) -> None:
    """Write a file under a temporary name, have it on the disk, and give it its name.

    Args:
        path: The file; one that is there is replaced, and folders above it are made.
        write: Gets the open binary file. For `torch.save` this is better than a path: with a path it does not tell the
            system's reason when it fails.

    Raises:
        OSError: If it cannot be written. As with any other error, nothing is left behind.
    """
    temporary = path.with_name(f".{path.name}~{writers_mark()}{TEMPORARY}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        reason = _system_error(error)
        if reason is None:
            raise
        raise cannot_write(reason, path) from error
    sync_folder(path.parent)


def rename_to_new(old: Path, new: Path) -> None:
    """Rename a file in its file system.

    Raises:
        FileExistsError: If the new name is taken; nothing is changed, then.
    """
    try:
        os.link(old, new)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        os.close(os.open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY))  # takes the name
        try:
            os.replace(old, new)
        except OSError:
            os.unlink(new)
            raise
    else:
        os.unlink(old)


def sync_folder(folder: Path) -> None:
    """Have a folder's new names on the disk, where the system can do it."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def writers_mark() -> str:
    """Name this process: its machine, its number, and the second it began, as numbers are used again."""
    return _mark_of(os.getpid())


@lru_cache(maxsize=1)
def _mark_of(pid: int) -> str:
    return f"{_host()}~{pid}~{int(psutil.Process(pid).create_time())}"


def may_be_written(name: str) -> bool:
    """Whether the process whose mark a file's name ends with may still be there; on another machine, it may."""
    marks = re.findall(r"~([^~]*)~(\d+)~(\d+)(?=\.|$)", name)
    if not marks or marks[-1][0] != _host():
        return True
    _, number, start_s = marks[-1]
    try:
        began_s = psutil.Process(int(number)).create_time()
    except psutil.NoSuchProcess:
        return False
    return abs(began_s - int(start_s)) < _CLOCK_S


def cannot_write(reason: OSError, path: Path) -> OSError:
    """Say which file could not be written, why, and what to do."""
    number = reason.errno or errno.EIO
    is_full = number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    hint = "free some space there" if is_full else "check that the folder can be written to"
    return OSError(number, f"{os.strerror(number)}; the file was not written. HINT: {hint}", str(path))


def _host() -> str:
    return re.sub(r"\W", "_", socket.gethostname())


def _system_error(error: BaseException) -> OSError | None:
    """Find the system's error behind one of `torch.save`, which raises its own on top of it."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError):
            return seen
        seen = seen.__cause__ or seen.__context__
    if isinstance(error, RuntimeError) and ("inline_container" in str(error) or "PytorchStreamWriter" in str(error)):
        return OSError(errno.EIO, str(error))
    return None
