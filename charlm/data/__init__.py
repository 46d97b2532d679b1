"""From text to `Batch`: corpora, vocabulary, and the framings that cut a text into the rows of a batch.

Everything is NumPy. This wing knows nothing of JAX or of models. A new corpus by name is an entry in `sources`; a new framing
is a class in `batches`.
"""
