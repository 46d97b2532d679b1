"""The run directory: all files that a training leaves, and every call of Orbax.

This wing knows nothing of training: it stores what it is given.
"""
