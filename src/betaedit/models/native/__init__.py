"""Kernels of our own for a search on a CPU (betaedit.native compiles them); without a compiler torch does the work.

This room knows ctypes and C; what is computed is for models/lean.py to say.
"""
