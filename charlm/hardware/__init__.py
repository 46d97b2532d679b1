"""Sets up the machine: devices that divide a batch, processes that train together, and the cache of compiled programs.

`accelerators` finds out whether JAX will use a GPU or TPU.

This package does not import charlm/data or charlm/models.
"""
