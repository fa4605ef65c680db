"""One sentence instead of a page of traceback, for what a user can mend."""

from __future__ import annotations

import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from hydra.errors import CompactHydraException, InstantiationException
from lightning.fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from lightning_gnnopt._names import unknown_name

_FULL = "HYDRA_FULL_ERROR"
_PACKAGE = Path(__file__).parent


def run(app: Callable[[], object]) -> None:
    """Run a Hydra application; end with one sentence and exit status 1 on a mistake of the user.

    A mistake is what this package, Hydra, OmegaConf or Lightning refuses; any other exception is a fault in the program
    and keeps its traceback. With ``HYDRA_FULL_ERROR=1`` everything does.

    Args:
        app: The function that `hydra.main` made.
    """
    if os.environ.get(_FULL, "0") not in ("", "0"):
        app()
        return
    try:
        with _hydra_raises():
            app()
    except Exception as error:
        sentence = explain(error)
        if sentence is None:
            raise
        sys.stderr.write(f"Error: {sentence}\n(Set {_FULL}=1 for the traceback.)\n")
        sys.exit(1)


@contextmanager
def _hydra_raises() -> Iterator[None]:
    """Make Hydra hand exceptions on, where it would print them itself and exit."""
    before = os.environ.get(_FULL)
    os.environ[_FULL] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_FULL]
        else:
            os.environ[_FULL] = before


def explain(error: BaseException) -> str | None:
    """Put a user's mistake into one sentence.

    Args:
        error: What was raised.

    Returns:
        The sentence, or None if the exception is not a user's mistake.
    """
    cause = error
    while isinstance(cause, InstantiationException) and cause.__cause__ is not None:
        cause = cause.__cause__
    if isinstance(cause, TypeError) and "unexpected keyword argument" in str(cause):
        return f"{cause}. HINT: see which keys there are with `--cfg job`."
    if isinstance(cause, MisconfigurationException) or _raised_by_package(cause):
        return str(cause)
    if isinstance(cause, CompactHydraException | OmegaConfBaseException):
        return _explain_hydra(cause)
    return None


def _raised_by_package(error: BaseException) -> bool:
    """Whether one of this package's own lines refused something (it raises these types for users only)."""
    if not isinstance(error, ValueError | TypeError | FileNotFoundError | ImportError):
        return False
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and Path(frames[-1].filename).is_relative_to(_PACKAGE)


def _explain_hydra(error: BaseException) -> str:
    """Name the nearest choice or key where Hydra refuses one; else put its lines into one."""
    message = str(error)
    choice = re.search(r"Could not find '(.+)/([^'/]+)'", message)
    listed = re.search(r"Available options in '[^']*':\n((?:\t.*\n?)+)", message)
    if choice and listed:
        options = [line.strip() for line in listed.group(1).splitlines()]
        return unknown_name(choice.group(1), choice.group(2), [name for name in options if name[0] != "_"])
    key = re.search(r"Could not override '([^']+)'", message)
    parent = getattr(error.__cause__, "parent_node", None)
    if key and isinstance(parent, DictConfig):
        path, _, _ = key.group(1).rpartition(".")
        names = [str(name) for name in parent]
        known = [f"{path}.{name}" if path else name for name in names if not name.startswith("_")]
        return f"{unknown_name('key', key.group(1), known)} HINT: +{key.group(1)}=... adds a new key."
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return " ".join(line if line.endswith((".", ":", "?")) else f"{line}." for line in lines)
