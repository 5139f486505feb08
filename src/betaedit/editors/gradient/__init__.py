"""Editors that follow the gradient of the answer's loss in the weights themselves (methods.md E)."""
