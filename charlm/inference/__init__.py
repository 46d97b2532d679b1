"""A trained model at work: restored, evaluated, sampled.

This wing knows nothing of training.
"""
