"""The parts of scripts/check_device.py, which checks whether charlm computes right results on a device, and how fast.

`parts` has the list of parts. Each part runs in its own process, `part.py`, and is killed when its time is up. `running` starts
these processes and collects what they report. `results` writes the JSON file and prints the tables.

The parts are `accuracy`, `resume`, `checkpoint`, `speed`, `training`, `packed` and `devices`. `accuracy` calls the functions of
charlm and compares their results with `textbook`, and `speed` starts the programs of scripts/peers/. The other parts start the
programs of charlm as a user would, with the help of `programs`.
"""
