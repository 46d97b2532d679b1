"""The network as pure functions of parameters, inputs and state.

`stack` builds a model from input encoding, layers, dropout and head. Each recurrence is one file in `cells`. This package
contains no optimisers. Only `drawing` writes files.
"""
