"""The faults that scripts/torture.py tries. Each fault has its own file.

The file of a fault has one function `results(runs)`, which tries the fault and returns rows of the table. The tests also use
`runs.py` and `checks.py`. `runs.py` starts programs, waits for a moment and harms files. `checks.py` compares runs and checks
how programs ended.
"""
