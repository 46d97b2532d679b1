"""Turns texts into objects of the class `Batch`. Framings are the ways to arrange a text into batches.

- `sources` has the named corpora. To add a corpus, add an entry to `SOURCES`.
- `corpora` reads a corpus and cuts it into splits.
- `textfiles` finds the files of a corpus and decodes them. `encodings` recognises encodings and binary files.
- `documents` divides the text of a file into documents.
- `longtext` encodes a text that is too long for memory.
- `vocab` maps symbols to ids.
- `ids` encodes a split as ids.
- `framing` has the settings of a framing. `batches` has the framings themselves. To add a framing, add a class to `batches`.
- `order` has the order of the examples in an epoch, and shuffles them.

The code in this package computes with NumPy only. It must not import JAX or `charlm.models`.
"""
