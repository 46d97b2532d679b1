"""The command line. Each file is one program with its flags.

Each program is a thin layer over the other wings of the package. `scripts/NAME.py` and `charlm NAME` run the same program.
"""
