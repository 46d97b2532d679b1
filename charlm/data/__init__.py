"""From text to `Batch`: corpora, vocabularies, and the framings that arrange a text into batches.

The code here uses NumPy only. This wing must not import JAX or models.

To add a named corpus, add an entry to `SOURCES` in sources.py. To add a framing, add a class to batches.py.
"""
