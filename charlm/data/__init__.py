"""From text to `Batch`: corpora, vocabularies, and the framings that arrange a text into batches.

- `sources` has the named corpora. To add one, add an entry to `SOURCES`.
- `corpora` reads a corpus and cuts it into splits.
- `longtext` encodes a text that is too long for memory.
- `vocab` maps symbols to ids.
- `batches` has the framings. To add one, add a class.

The code here uses NumPy only. This wing must not import JAX or models.
"""
