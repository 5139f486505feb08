"""Files that several processes may write at once: whole or not at all, and work that only one of them does."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

logger = logging.getLogger(__name__)


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A file beside ``path`` to write to, this process's own; it takes the place of ``path``, or goes on an error."""
    scratch = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.writing")
    try:
        yield scratch
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


@contextmanager
def one_at_a_time(lock_file: Path) -> Iterator[None]:
    """Hold the lock, waiting for another process that does; one that has died holds none."""
    lock = FileLock(lock_file)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        logger.warning("another process is at the same work; waiting for it (%s)", lock_file)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
