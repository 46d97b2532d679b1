"""The faults that scripts/torture.py tries, such as a kill or a full disk. Each fault has its own file.

The file of a fault has one function `results(runs)`, which tries the fault and returns rows for the table of results. The tests
also use `runs.py` and `checks.py`. `runs.py` starts programs, waits until a run reaches a given point, and damages files.
`checks.py` compares runs and checks how programs ended.
"""
