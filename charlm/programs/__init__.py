"""The command line: one program a file, with its flags.

Each is a thin layer over the wings below. `scripts/NAME.py` and `charlm NAME` both run it.
"""
