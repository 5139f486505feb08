"""Editors that leave the weights as they are and change what one module gives for some prompts (methods.md F)."""
