"""C code for CPUs, compiled for the local processor; torch is used without a compiler.

This room knows compilers and threads; models/runners and memory say what is computed.
"""
