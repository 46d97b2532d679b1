"""From text to `Batch`: corpora, vocabularies, and the framings that arrange a text into batches.

Everything here is NumPy. This wing must not import JAX or models.

To add a corpus by name, add an entry to `SOURCES` in sources.py. To add a framing, add a class to batches.py.
"""
