"""Measures the speed of recurrent layers in Flax Linen. worker.py describes the input and output of this program.

The code follows the documentation of Flax. nn.RNN runs a cell, such as nn.OptimizedLSTMCell, over time, and Optax provides the
optimiser. One jitted function makes one training step.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import worker


class Stack(nn.Module):
    cell: str
    vocab: int
    layers: int
    hidden: int
    embedding: int

    def setup(self):
        one_hot = functools.partial(jax.nn.one_hot, num_classes=self.vocab)
        self.embed = nn.Embed(self.vocab, self.embedding) if self.embedding else one_hot
        cell = {"lstm": nn.OptimizedLSTMCell, "gru": nn.GRUCell, "rnn": nn.SimpleCell}[self.cell]
        self.cells = [cell(self.hidden) for _ in range(self.layers)]
        self.over_time = [nn.RNN(cell, return_carry=True) for cell in self.cells]
        self.head = nn.Dense(self.vocab)

    def __call__(self, inputs_BT, carry):
        """Reads a window. Returns the logits and the new carry."""
        x, new = self.embed(inputs_BT), []
        for over_time, state in zip(self.over_time, carry, strict=True):
            state, x = over_time(x, initial_carry=state)
            new.append(state)
        return self.head(x), new

    def step(self, ids_B, carry):
        """Reads one character. Returns the logits of the next character and the new carry."""
        x, new = self.embed(ids_B), []
        for cell, state in zip(self.cells, carry, strict=True):
            state, x = cell(state, x)
            new.append(state)
        return self.head(x), new


def main() -> None:
    job = worker.job()
    batch, length, vocab = job["batch"], job["length"], job["vocab"]
    model = Stack(job["cell"], vocab, job["layers"], job["hidden"], job["embedding"])
    zeros = jnp.zeros((batch, job["hidden"]))
    carry = [(jnp.array(zeros), jnp.array(zeros)) if job["cell"] == "lstm" else jnp.array(zeros) for _ in range(job["layers"])]
    ids = np.random.default_rng(0).integers(0, vocab, (20, batch, length + 1)).astype(np.int32)
    params = jax.jit(model.init)(jax.random.key(0), ids[0, :, :2], carry)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(params))
    if job["task"] == "sample":
        run = sampling(model, params, carry, batch)
    else:
        run = {"train": training, "evaluate": evaluation}[job["task"]](model, params, carry, ids)
    worker.serve(run, parameters=parameters)


def training(model, params, carry, ids):
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(3e-3))
    batch, length = ids.shape[1], ids.shape[2] - 1

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state, window_BT):
        params, opt_state, carry = state

        def loss(params):
            logits, new = model.apply(params, window_BT[:, :-1], carry)
            return optax.softmax_cross_entropy_with_integer_labels(logits, window_BT[:, 1:]).mean(), new

        (nats, carry), grads = jax.value_and_grad(loss, has_aux=True)(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state, carry), nats

    state, done = (params, optimizer.init(params), carry), 0

    def run(steps: int) -> int:
        nonlocal state, done
        for _ in range(steps):
            state, _ = step(state, ids[done % len(ids)])
            done += 1
        jax.block_until_ready(state)
        return steps * batch * length

    return run


def evaluation(model, params, carry, ids):
    batch, length = ids.shape[1], ids.shape[2] - 1

    @functools.partial(jax.jit, donate_argnums=1)
    def window(params, carry, window_BT):
        logits, carry = model.apply(params, window_BT[:, :-1], carry)
        return optax.softmax_cross_entropy_with_integer_labels(logits, window_BT[:, 1:]).sum(), carry

    state, done = carry, 0

    def run(windows: int) -> int:
        nonlocal state, done
        nats = []
        for _ in range(windows):
            window_nats, state = window(params, state, ids[done % len(ids)])
            nats.append(window_nats)
            done += 1
        jax.device_get(nats)
        return windows * batch * length

    return run


def sampling(model, params, carry, batch: int, chunk: int = 64):
    @jax.jit
    def draw(state, key):
        def draw_char(state, key):
            ids_B, carry = state
            logits_BV, carry = model.apply(params, ids_B, carry, method=Stack.step)
            ids_B = jax.random.categorical(key, logits_BV / 0.8)
            return (ids_B, carry), ids_B

        return jax.lax.scan(draw_char, state, jax.random.split(key, chunk))

    state, done = (jnp.zeros(batch, jnp.int32), carry), 0

    def run(chunks: int) -> int:
        nonlocal state, done
        for _ in range(chunks):
            state, ids = draw(state, jax.random.key(done))
            done += 1
        np.asarray(ids)
        return chunks * chunk * batch

    return run


if __name__ == "__main__":
    main()
