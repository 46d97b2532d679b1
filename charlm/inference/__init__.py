"""A trained model in use: read from its run directory, scored on texts, sampled from.

`model.Model` puts these together for notebooks and programs. This wing knows nothing of training.
"""
