"""Paired timings: this engine and the published procedure on the same work, in one run."""
