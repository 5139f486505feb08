"""Gated memory: residuals beside the model, added only where a token's key matches (methods.md B.11)."""
