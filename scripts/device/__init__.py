"""The parts of scripts/check_device.py, which checks whether charlm computes right results on a device, and how fast.

`parts` has the list of parts. Each part runs in its own process, `part.py`, and is stopped when its time is up. `running` starts
these processes and collects what they report. `report` writes the JSON file and prints the tables.

The other modules are the parts. They start the programs of charlm as a user would, except `accuracy` and `speed`, which call
charlm's functions.
"""
