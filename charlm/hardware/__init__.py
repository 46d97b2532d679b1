"""The machine: devices that share a batch, processes that train together, and the cache of compiled programs.

This wing does not depend on data or models.
"""
