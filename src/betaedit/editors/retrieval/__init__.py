"""Editors that change no weights: facts are kept as text, and prompts are framed with those that bear on them."""
