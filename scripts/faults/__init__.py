"""The faults that scripts/torture.py tries, one file each, and what they share with the tests.

Each fault's file has one function `results(runs)`, which tries the fault and returns rows of the table. `runs.py` starts
programs, waits for a moment and harms files. `checks.py` says what differs from what it should be.
"""
