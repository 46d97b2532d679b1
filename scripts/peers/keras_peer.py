"""Keras 3 on its JAX backend: model.fit for training, a jitted stateless_call a character for sampling; see worker.py."""

import time

import jax
import jax.numpy as jnp
import keras
import numpy as np
import worker


def main() -> None:
    job = worker.job()
    train(job) if job["task"] == "train" else sample(job)


def layers_of(job: dict) -> list:
    first = keras.layers.Embedding(job["vocab"], job["embedding"]) if job["embedding"] else keras.layers.CategoryEncoding
    if not job["embedding"]:
        first = keras.layers.Lambda(lambda ids: keras.ops.one_hot(ids, job["vocab"]))
    return [first]


def train(job: dict) -> None:
    batch, length, vocab = job["batch"], job["length"], job["vocab"]
    inputs = keras.Input((length,), batch_size=batch, dtype="int32")
    x = layers_of(job)[0](inputs)
    for _ in range(job["layers"]):
        x = keras.layers.LSTM(job["hidden"], return_sequences=True, stateful=True)(x)
    model = keras.Model(inputs, keras.layers.Dense(vocab)(x))
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

    worker.serve(run)


def sample(job: dict) -> None:
    batch, vocab, hidden = job["batch"], job["vocab"], job["hidden"]
    inputs = keras.Input((1,), batch_size=batch, dtype="int32")
    states = [keras.Input((hidden,), batch_size=batch) for _ in range(2 * job["layers"])]
    x, new = layers_of(job)[0](inputs), []
    for layer in range(job["layers"]):
        sequences = layer < job["layers"] - 1
        x, *state = keras.layers.LSTM(hidden, return_sequences=sequences, return_state=True)(
            x, initial_state=states[2 * layer : 2 * layer + 2]
        )
        new += state
    model = keras.Model([inputs, *states], [keras.layers.Dense(vocab)(x), *new])
    weights = [variable.value for variable in model.trainable_variables]
    fixed = [variable.value for variable in model.non_trainable_variables]

    @jax.jit
    def one(weights, ids_B1, states, key):
        (logits_BV, *states), _ = model.stateless_call(weights, fixed, [ids_B1, *states])
        return jax.random.categorical(key, logits_BV / 0.8)[:, None].astype(jnp.int32), states

    ids_B1, states = jnp.zeros((batch, 1), jnp.int32), [jnp.zeros((batch, hidden)) for _ in states]
    key = jax.random.key(time.time_ns() % 2**31)

    def run(chunks: int) -> int:
        nonlocal ids_B1, states
        for char in range(chunks * 64):
            ids_B1, states = one(weights, ids_B1, states, jax.random.fold_in(key, char))
        np.asarray(ids_B1)
        return chunks * 64 * batch

    worker.serve(run)


if __name__ == "__main__":
    main()
