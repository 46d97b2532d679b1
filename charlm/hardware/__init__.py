"""The machine: devices that share a batch, processes that train together, and the cache of compiled programs.

This wing knows nothing of data or models.
"""
