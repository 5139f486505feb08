"""The peak that is told is that of the program itself."""

from __future__ import annotations

import subprocess
import sys

import torch

MIB = 2**20
PROGRAM = "from betaedit.benchmarks.peak import _most_resident; print(_most_resident())"


def test_what_the_parent_process_holds_does_not_count() -> None:
    held = torch.ones(1000 * MIB // 4)
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert held.numel() > 0
    assert 10 * MIB < int(done.stdout) < 900 * MIB
