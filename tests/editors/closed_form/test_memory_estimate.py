"""What editing is said to hold beside a model's weights."""

from __future__ import annotations

import torch

from betaedit.editors.closed_form.memory_estimate import editing_bytes, solver_bytes_bound
from betaedit.editors.matrix import EditedMatrix
from betaedit.memory import AssociativeMemory, MemoryRule


def test_a_solver_of_whole_rank_that_is_about_to_fold_again_holds_the_most():
    d = 6
    rule = MemoryRule(
        projector="refreshed", leakage_weight=1.0, history=True, ridge=1.0, threshold=2.0, refresh_every=10_000
    )
    memory = AssociativeMemory(torch.eye(d), rule)
    random = torch.Generator().manual_seed(0)
    for count in (128, 127):
        assert memory.nbytes < solver_bytes_bound(d)
        memory.remember(torch.randn(d, count, generator=random))
    assert memory.nbytes == solver_bytes_bound(d) == 8 * d * d + 4 * d * d + 8 * d * d + 8 * (2 * d + d) * 128


def test_original_change_and_one_eigendecomposition_are_counted():
    shapes = [(3, 7), (3, 5)]
    for dtype, element, change in ((torch.bfloat16, 2, 4), (torch.float32, 4, 4), (torch.float64, 8, 8)):
        assert editing_bytes(100, shapes, element) == 100 + 36 * (element + change) + 24 * 49
        matrix = EditedMatrix(torch.nn.Linear(7, 3, dtype=dtype))
        assert matrix.change().element_size() == change
