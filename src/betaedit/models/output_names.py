"""Names of MLP output projections in the supported families; needs no torch."""

from __future__ import annotations

OUTPUT_NAMES = ("down_proj", "c_proj", "fc_out", "dense_4h_to_h", "fc2", "w2")
"""Of Llama and its kin, GPT-2, GPT-J, GPT-NeoX, Phi and OLMo."""
