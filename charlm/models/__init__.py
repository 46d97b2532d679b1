"""The network as pure functions of parameters, inputs and state.

- `stack` builds a model from input encoding, layers, dropout and head.
- `cells` has one file for each recurrence.
- `initializers` makes initial weights.
- `products` multiplies matrices in the dtype of the config.
- `dropout` drops activations.
- `objective` computes the loss.
- `drawing` draws a network with Graphviz.

This wing contains no optimisers. Only `drawing` writes files.
"""
