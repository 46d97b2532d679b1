"""charlm: character-level LSTM language models in JAX."""
