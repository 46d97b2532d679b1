"""The programs of the command line. Each file is one program and defines the flags of the program. `import_flags`
and `model_flags` define flags of several programs.

A program checks its flags, calls the other packages inside charlm/ and writes the results. `scripts/NAME.py` and `charlm NAME`
run the same program.
"""
