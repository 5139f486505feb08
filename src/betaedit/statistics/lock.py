"""A lock for work that only one of several processes should do."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

logger = logging.getLogger(__name__)


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
