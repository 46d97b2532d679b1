"""Uses a trained model: reads it from its run directory, scores texts and draws samples.

`model.Model` combines these functions for notebooks and programs. This wing does not depend on the training code.
"""
