"""Hypernetworks: from the gradient of a fact to a change of weights, and their training (methods.md E.5 to E.7)."""
