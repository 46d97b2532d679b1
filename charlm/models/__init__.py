"""The network as pure functions of parameters, inputs and state.

- `stack` builds a model from input encoding, layers, dropout and head.
- `blocks` describes the layers, and has the parts that surround a cell, such as skip connections and feed-forward blocks.
- `cells` has one file for each kind of recurrent cell.
- `initializers` makes initial weights.
- `products` multiplies matrices in the data type that the config key `model.dtype` sets.
- `platform` tells whether a program is traced for a CPU, so that programs for a GPU or TPU leave out what only helps a CPU.
- `dropout` drops activations, weights and embeddings.
- `regularisers` reads the dropout rates of each place in the network from the config, and computes the penalties on
  activations.
- `recurrent_noise` adds zoneout and recurrent dropout to a cell.
- `objective` computes the loss.
- `drawing` draws a network with Graphviz.

This folder contains no optimisers. Among its modules, only `drawing` writes files.
"""
