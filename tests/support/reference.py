"""Dense float64 formulas of every recipe, written from docs/methods.md (sections B and D) and nothing else.

Nothing of ``betaedit`` is imported here: each rule is its published closed form on d x d matrices, in the order of its
factors on paper. ``DenseMemory`` runs a rule over a sequence of edits as the official code does, step after step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

RefreshRule = Literal["normalised", "literal"]
Reference = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, float, float], Tensor]


def memit(K: Tensor, R: Tensor, C0: Tensor, H: Tensor, P: Tensor, lambda1: float, lambda2: float) -> Tensor:
    """B.3, batch: ``R K^T (lambda1 C0 + K K^T)^-1``; knows neither history nor projector nor ridge."""
    return torch.linalg.solve(lambda1 * C0 + K @ K.T, K @ R.T).T


def memit_h(K: Tensor, R: Tensor, C0: Tensor, H: Tensor, P: Tensor, lambda1: float, lambda2: float) -> Tensor:
    """B.3, sequential: ``R K^T (lambda1 C0 + H + K K^T)^-1``."""
    return torch.linalg.solve(lambda1 * C0 + H + K @ K.T, K @ R.T).T


def alphaedit(K: Tensor, R: Tensor, C0: Tensor, H: Tensor, P: Tensor, lambda1: float, lambda2: float) -> Tensor:
    """B.6 with history: ``R K^T P ((K K^T + H) P + lambda2 I)^-1``."""
    return R @ K.T @ P @ torch.linalg.inv((K @ K.T + H) @ P + lambda2 * _identity(P))


def alphaedit_naive(K: Tensor, R: Tensor, C0: Tensor, H: Tensor, P: Tensor, lambda1: float, lambda2: float) -> Tensor:
    """B.6, naive: ``R K^T P (K K^T P + lambda2 I)^-1``."""
    return R @ K.T @ P @ torch.linalg.inv(K @ K.T @ P + lambda2 * _identity(P))


def betaedit(K: Tensor, R: Tensor, C0: Tensor, H: Tensor, P: Tensor, lambda1: float, lambda2: float) -> Tensor:
    """B.7: ``R K^T P_t (lambda2 I + (K K^T + lambda1 C0 + H) P_t)^-1``."""
    return R @ K.T @ P @ torch.linalg.inv(lambda2 * _identity(P) + (K @ K.T + lambda1 * C0 + H) @ P)


def memit_30000(K: Tensor, R: Tensor, C0: Tensor, H: Tensor, P: Tensor, lambda1: float, lambda2: float) -> Tensor:
    """B.3 with doubled strength: ``R K^T (2 lambda1 C0 + K K^T)^-1``."""
    return R @ K.T @ torch.linalg.inv(2 * lambda1 * C0 + K @ K.T)


def encore(K: Tensor, R: Tensor, C0: Tensor, H: Tensor, P: Tensor, lambda1: float, lambda2: float) -> Tensor:
    """B.10: ``R K^T (lambda1 C0 + H + K K^T + lambda2 I)^-1``."""
    return R @ K.T @ torch.linalg.inv(lambda1 * C0 + H + K @ K.T + lambda2 * _identity(C0))


def betaedit_no_kl(K: Tensor, R: Tensor, C0: Tensor, H: Tensor, P: Tensor, lambda1: float, lambda2: float) -> Tensor:
    """B.8: betaedit without ``lambda1 C0`` in the solve."""
    return R @ K.T @ P @ torch.linalg.inv(lambda2 * _identity(P) + (K @ K.T + H) @ P)


REFERENCES: dict[str, Reference] = {
    "memit": memit,
    "memit-h": memit_h,
    "memit-30000": memit_30000,
    "encore": encore,
    "alphaedit": alphaedit,
    "alphaedit-naive": alphaedit_naive,
    "betaedit": betaedit,
    "betaedit-no-kl": betaedit_no_kl,
    "betaedit-no-ns": betaedit,
}
"""The ridge form: what each rule adds to the system."""

REMEMBERING = ("memit-h", "encore", "alphaedit", "betaedit", "betaedit-no-kl", "betaedit-no-ns")
FORGETTING = ("memit", "memit-30000", "alphaedit-naive")
PROJECTING = ("alphaedit", "alphaedit-naive", "betaedit", "betaedit-no-kl", "betaedit-no-ns")
REFRESHING = ("betaedit", "betaedit-no-kl")

SAME_RULE = {
    "memit-r": "memit-h",
    "memit-ns": "betaedit",
    "pmet": "memit",
    "pmet-h": "memit-h",
    "pmet-ns": "betaedit",
    "sphere": "alphaedit",
    **dict.fromkeys(("rect", "prune", "simie", "adaedit"), "memit"),
    **{
        f"{operator}-{variant}": "memit-h"
        for operator in ("rect", "prune", "simie", "adaedit")
        for variant in ("seq", "aligned")
    },
}
"""Recipes that differ from another outside the system alone: in spread, in keys, or in what is done to an update."""

EQUALITY = ("rome", "r-rome", "emmet", "emmet-h", "emmet-ns")


def rome(k: Tensor, r: Tensor, C0: Tensor, k_bare: Tensor) -> Tensor:
    """B.1: ``u = C0^-1 k`` at unit length, ``right = r / (k_bare . u)``, ``Delta = right u^T``."""
    u = torch.linalg.inv(C0) @ k
    u = u / torch.linalg.norm(u)
    return (r / (k_bare * u).sum()) @ u.T


def emmet(K: Tensor, R: Tensor, S: Tensor, lambda_e: float) -> Tensor:
    """B.5: ``R (K^T S^-1 K + lambda_e I_b)^-1 K^T S^-1``; ``lambda_e`` in batches of more than one only."""
    inverse = torch.linalg.inv(S)
    slack = lambda_e if K.shape[1] > 1 else 0.0
    middle = K.T @ inverse @ K + slack * torch.eye(K.shape[1], dtype=K.dtype)
    return R @ torch.linalg.inv(middle) @ K.T @ inverse


def emmet_within(K: Tensor, R: Tensor, S: Tensor, P: Tensor, lambda2: float, lambda_e: float) -> Tensor:
    """emmet among updates ``Delta = Delta P``: ``S^-1`` becomes ``P (P S P + lambda2 I)^-1 P``."""
    inverse = P @ torch.linalg.inv(P @ S @ P + lambda2 * _identity(P)) @ P
    slack = lambda_e if K.shape[1] > 1 else 0.0
    middle = K.T @ inverse @ K + slack * torch.eye(K.shape[1], dtype=K.dtype)
    return R @ torch.linalg.inv(middle) @ K.T @ inverse


def grid_rule(K: Tensor, R: Tensor, Q: Tensor, S: Tensor, lambda2: float) -> Tensor:
    """The literal line of the official code (head of section B): ``solve(Q (K K^T + S) + lambda2 I, Q K R^T)^T``."""
    return torch.linalg.solve(Q @ (K @ K.T + S) + lambda2 * _identity(Q), Q @ K @ R.T).T


def reference_projector(C0: Tensor, threshold: float) -> Tensor:
    """B.6: the left singular vectors whose singular values lie below ``threshold``, as ``U_s U_s^T``."""
    U, values, _ = torch.linalg.svd(C0.double())
    small = U[:, values < threshold]
    return small @ small.T


def refresh_matrix(C0: Tensor, H: Tensor, count: int, lambda1: float, rule: RefreshRule) -> Tensor:
    """The matrix whose small eigenvalues span BetaEdit's projector after ``count`` edits (B.7).

    ``normalised``, the official code: ``C0`` before the first edit, ``(H / count + lambda1 C0) / (lambda1 + 1)`` after.
    ``literal``, the paper: ``lambda1 C0 + H`` throughout.
    """
    if rule == "literal":
        return lambda1 * C0 + H
    return C0 if count == 0 else (H / count + lambda1 * C0) / (lambda1 + 1)


class DenseMemory:
    """One recipe over a sequence of edits, with full matrices: the slow truth."""

    def __init__(
        self,
        name: str,
        C0: Tensor,
        *,
        lambda1: float,
        lambda2: float,
        threshold: float,
        refresh_every: int = 10**9,
        refresh_rule: RefreshRule = "normalised",
    ) -> None:
        self.name, self.C0, self.lambda1, self.lambda2 = name, C0.double(), lambda1, lambda2
        self.threshold, self.refresh_every, self.refresh_rule = threshold, refresh_every, refresh_rule
        self.H = torch.zeros_like(self.C0)
        self.count = self.last = 0
        self.P = reference_projector(self.thresholded(), threshold)

    def thresholded(self) -> Tensor:
        """The matrix that the next projector would be cut from."""
        if self.name not in REFRESHING:
            return self.C0
        return refresh_matrix(self.C0, self.H, self.count, self.lambda1, self.refresh_rule)

    def due(self) -> bool:
        """B.7: ``count - last >= tau``."""
        return self.name in REFRESHING and self.count - self.last >= self.refresh_every

    def refresh(self) -> None:
        """A new projector from text and history."""
        self.P = reference_projector(self.thresholded(), self.threshold)
        self.last = self.count

    def solve(self, K: Tensor, R: Tensor) -> Tensor:
        """``Delta`` of one batch."""
        K, R = K.double(), R.double()
        return REFERENCES[self.name](K, R, self.C0, self.H, self.P, self.lambda1, self.lambda2)

    def remember(self, K: Tensor) -> None:
        """``H += K K^T``; the rules without history never look at it."""
        K = K.double()
        self.H = self.H + K @ K.T
        self.count += K.shape[1]


def relative_error(got: Tensor, wanted: Tensor) -> float:
    """The Frobenius norm of the difference in norms of what was wanted."""
    return float(torch.linalg.norm(got - wanted) / torch.linalg.norm(wanted))


def _identity(like: Tensor) -> Tensor:
    return torch.eye(like.shape[0], dtype=like.dtype)


# --- post-processing (methods.md C) --------------------------------------------------------------------------------


def keep_top(change: Tensor, scores: Tensor, fraction: float) -> Tensor:
    """C.1: the threshold is the ``int(n (1 - fraction))``-th smallest score of a full sort; ``>=`` stays."""
    rank = int(scores.numel() * (1 - fraction) + 1e-8)
    if rank == 0:
        return change
    return change * (scores >= sorted(scores.flatten().tolist())[rank - 1])


def spared(change: Tensor, weight: Tensor, share: float, strength: float) -> Tensor:
    """B.10, SPHERE: ``D (I - alpha U U^T)``, ``U`` of ``C = W^^T W^ / d_out`` up to the one that passes the share."""
    rows = torch.stack([row / (row.norm() + 1e-8) for row in weight])
    values, vectors = torch.linalg.eigh(rows.T @ rows / len(rows))
    taken, energy = [], 0.0
    for i in reversed(range(len(values))):
        taken.append(vectors[:, i])
        energy += float(values[i])
        if energy > share * float(values.sum()):
            break
    U = torch.stack(taken, dim=1)
    return change @ (_identity(C := U @ U.T) - strength * C)


def log_compressed(change: Tensor, weight: Tensor, base: float) -> Tensor:
    """C.2: ``s' = s`` up to ``s*``, ``log_a(s) - log_a(s*) + s*`` above it."""
    U, S, Vt = torch.linalg.svd(change, full_matrices=False)
    top = float(torch.linalg.svdvals(weight)[0])
    compressed = [s if s <= top else math.log(s, base) - math.log(top, base) + top for s in S.tolist()]
    return U @ torch.diag(torch.tensor(compressed, dtype=U.dtype)) @ Vt


def sparse_in_whitened_keys(change: Tensor, C0: Tensor, fraction: float) -> Tensor:
    """C.3: the largest entries of ``D C0^(1/2)``, times ``C0^(-1/2)``."""
    U, values, _ = torch.linalg.svd(C0)
    root = U @ torch.diag(values.sqrt()) @ U.T
    whitened = change @ root
    return torch.linalg.solve(root, keep_top(whitened, whitened.abs(), fraction).T).T


def simie_solution(W0: Tensor, edited: list[Tensor], tokens: list[Tensor], ridge: float) -> Tensor:
    """C.4: the minimum of ``sum ||(W - W_s) X_s||^2 + lambda ||W - W_0||^2``, by its normal equations."""
    left = ridge * W0 + sum((W @ X @ X.T for W, X in zip(edited, tokens, strict=True)), torch.zeros_like(W0))
    right = ridge * _identity(tokens[0] @ tokens[0].T) + sum((X @ X.T for X in tokens[1:]), tokens[0] @ tokens[0].T)
    return torch.linalg.solve(right, left.T).T


def one_time_solution(W0: Tensor, K: Tensor, V: Tensor, S: Tensor) -> Tensor:
    """D.1 for memit: ``W_0 + (V - W_0 K) K^T (S + K K^T)^-1``."""
    return W0 + (V - W0 @ K) @ K.T @ torch.linalg.inv(S + K @ K.T)


class AlignedSequence:
    """Algorithm 1 as printed (C.0): ``C`` gains the keys first, ``E`` is overwritten."""

    def __init__(self, W0: Tensor, S: Tensor) -> None:
        self.W, self.C, self.E = W0.clone(), S.clone(), torch.zeros_like(W0)

    def step(self, K: Tensor, V: Tensor, operate: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.C = self.C + K @ K.T
        R = V - self.W @ K
        D = torch.linalg.solve(self.C, (R @ K.T - self.E).T).T
        processed = operate(D, self.W)
        self.W = self.W + processed
        self.E = (processed - D) @ self.C
