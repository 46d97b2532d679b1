"""Measures how fast Keras 3 with the JAX backend works. worker.py describes the input and output of this program.

Training uses model.fit. An evaluation uses model.evaluate. Sampling uses a jitted scan over model.stateless_call.
"""

import math

import jax
import jax.numpy as jnp
import keras
import numpy as np
import worker


def main() -> None:
    job = worker.job()
    {"train": train, "evaluate": evaluate, "sample": sample}[job["task"]](job)


def layer_class(job: dict):
    return {"lstm": keras.layers.LSTM, "gru": keras.layers.GRU, "rnn": keras.layers.SimpleRNN}[job["cell"]]


def encode(job: dict, ids):
    if job["embedding"]:
        return keras.layers.Embedding(job["vocab"], job["embedding"])(ids)
    return keras.layers.Lambda(lambda ids: keras.ops.one_hot(ids, job["vocab"]))(ids)


def stateful(job: dict, length: int):
    """Returns a model for windows of `length` characters. It carries the recurrent state from window to window."""
    inputs = keras.Input((length,), batch_size=job["batch"], dtype="int32")
    x = encode(job, inputs)
    for _ in range(job["layers"]):
        x = layer_class(job)(job["hidden"], return_sequences=True, stateful=True)(x)
    return keras.Model(inputs, keras.layers.Dense(job["vocab"])(x))


def parameter_count(model) -> int:
    return sum(math.prod(weights.shape) for weights in model.trainable_weights)


def train(job: dict) -> None:
    batch, length, vocab = job["batch"], job["length"], job["vocab"]
    model = stateful(job, length)
    model.compile(
        keras.optimizers.Adam(3e-3, global_clipnorm=1.0), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    ids = np.random.default_rng(0).integers(0, vocab, (64 * batch, length + 1)).astype(np.int32)

    def run(steps: int) -> int:
        done = 0
        while done < steps:
            now = min(64, steps - done)
            rows = ids[: now * batch]
            model.fit(rows[:, :-1], rows[:, 1:], batch_size=batch, epochs=1, shuffle=False, verbose=0)
            done += now
        return steps * batch * length

    worker.serve(run, parameters=parameter_count(model))


def evaluate(job: dict) -> None:
    # model.evaluate takes some time for each window, so the windows of a few lanes are longer.
    batch, joined, vocab = job["batch"], max(1, 8 // job["batch"]), job["vocab"]
    length = joined * job["length"]
    model = stateful(job, length)
    model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    ids = np.random.default_rng(0).integers(0, vocab, (16 * batch, length + 1)).astype(np.int32)

    def run(windows: int) -> int:
        done, windows = 0, -(-windows // joined)
        while done < windows:
            now = min(16, windows - done)
            rows = ids[: now * batch]
            model.evaluate(rows[:, :-1], rows[:, 1:], batch_size=batch, verbose=0)
            done += now
        return windows * batch * length

    worker.serve(run, parameters=parameter_count(model))


def sample(job: dict) -> None:
    batch, vocab, hidden = job["batch"], job["vocab"], job["hidden"]
    inputs = keras.Input((1,), batch_size=batch, dtype="int32")
    parts = 2 if job["cell"] == "lstm" else 1  # the LSTM's state has two arrays
    states = [keras.Input((hidden,), batch_size=batch) for _ in range(parts * job["layers"])]
    x, new = encode(job, inputs), []
    for layer in range(job["layers"]):
        sequences = layer < job["layers"] - 1
        x, *state = layer_class(job)(hidden, return_sequences=sequences, return_state=True)(
            x, initial_state=states[parts * layer : parts * (layer + 1)]
        )
        new += state
    model = keras.Model([inputs, *states], [keras.layers.Dense(vocab)(x), *new])
    weights = [variable.value for variable in model.trainable_variables]
    fixed = [variable.value for variable in model.non_trainable_variables]

    @jax.jit
    def draw(weights, state, key):
        def draw_char(state, key):
            ids_B1, states = state
            (logits_BV, *states), _ = model.stateless_call(weights, fixed, [ids_B1, *states])
            ids_B1 = jax.random.categorical(key, logits_BV / 0.8)[:, None].astype(jnp.int32)
            return (ids_B1, states), ids_B1

        return jax.lax.scan(draw_char, state, jax.random.split(key, 64))

    state, done = (jnp.zeros((batch, 1), jnp.int32), [jnp.zeros((batch, hidden)) for _ in states]), 0

    def run(chunks: int) -> int:
        nonlocal state, done
        for _ in range(chunks):
            state, ids = draw(weights, state, jax.random.key(done))
            done += 1
        np.asarray(ids)
        return chunks * 64 * batch

    worker.serve(run, parameters=parameter_count(model))


if __name__ == "__main__":
    main()
