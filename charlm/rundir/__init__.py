"""The run directory: all that lasts of a training, and every call of Orbax.

This wing knows nothing of training: it stores what it is given.
"""
