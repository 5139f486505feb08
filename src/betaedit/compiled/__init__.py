"""Code in C for CPUs, compiled for the processor at hand; without a compiler torch does the work.

This room knows compilers and threads; models/runners and memory say what is computed.
"""
