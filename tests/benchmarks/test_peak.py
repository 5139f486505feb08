"""The peak that is told is that of the program itself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from betaedit.benchmarks.peak import measure_peak
from betaedit.errors import ModelError
from betaedit.facts import Fact

MIB = 2**20
PROGRAM = "from betaedit.benchmarks.peak import _most_resident; print(_most_resident())"


def test_what_the_parent_process_holds_does_not_count() -> None:
    held = torch.ones(1000 * MIB // 4)
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert held.numel() > 0
    assert 10 * MIB < int(done.stdout) < 900 * MIB


def test_a_process_that_ends_early_says_why(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"ended early: .*there is no model folder"):
        measure_peak([Fact("{} is in", "Rome", "Spain")], name=str(tmp_path / "nothing"))
