"""The folder of an unfinished healing on this machine."""

import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from gptailor.checkpoint.cache_folder import is_ours, kept_home
from gptailor.evaluation.fits.heal.learning import HealError

_FORGOTTEN_SECONDS = 30 * 86_400
"""Age at which the files of a killed run are removed."""


@contextmanager
def working_folder(key: str) -> Iterator[Path]:
    """Yield the folder of a healing, which a killed run leaves and a finished run removes.

    The folder is temporary if no folder can be kept, or if another process heals the same plan.
    """
    folder = kept_home() / "heal" / key
    with ExitStack() as stack:
        try:
            _forget(folder.parent)
            folder.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context((folder / "lock").open("w"))
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            ours = os.path.samestat(os.fstat(lock.fileno()), (folder / "lock").stat())
            ours = ours and is_ours(folder)
        except OSError:  # no place to keep it, or another process heals the same plan
            ours = False
        if not ours:
            try:
                made = TemporaryDirectory(prefix="gptailor-heal-", ignore_cleanup_errors=True)
                folder = Path(stack.enter_context(made))
            except OSError:  # no folder at all: all is in memory
                folder = Path(os.devnull)
        try:
            yield folder
        except HealError:  # another run would end in the same way
            shutil.rmtree(folder, ignore_errors=True)
            raise
        shutil.rmtree(folder, ignore_errors=True)


def _forget(home: Path) -> None:
    """Remove the old folders of killed runs."""
    for folder in home.glob("*/"):
        with suppress(OSError):  # gone, or another user's
            latest = max(file.stat().st_mtime for file in (folder, *folder.rglob("*")))
            if time.time() - latest > _FORGOTTEN_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)
