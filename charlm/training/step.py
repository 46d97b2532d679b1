"""The training step as a pure function of state and batch; everything in it is jitted.

Letters: B batch (rows), S scored positions, V vocabulary, K steps of one call, D devices, N numbers of all sums.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.flatten_util
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, PartitionSpec

from charlm.data.batches import Batch
from charlm.models import objective
from charlm.models.stack import Functions


class TrainState(NamedTuple):
    """Everything that a step changes.

    Attributes:
      step: int32 scalar, the number of steps made. Randomness follows from the seed and this number; no key is stored.
      carry: the state of the recurrence, handed from step to step.
    """

    step: jax.Array
    params: Any
    opt_state: optax.OptState
    carry: tuple


class StepMetrics(NamedTuple):
    """Scalars of one step, summed over all devices.

    Attributes:
      nats, chars: over the characters of text.
      loss_nats, loss_weight: over everything that the loss counts, including padding if it is counted.
      grad_norm: global norm of the gradient before clipping.
      asked_to_stop: devices whose process was asked to stop; None if there is one process.
    """

    nats: jax.Array
    chars: jax.Array
    loss_nats: jax.Array
    loss_weight: jax.Array
    grad_norm: jax.Array
    asked_to_stop: jax.Array | None = None


def make_train_step(
    functions: Functions, optimizer: optax.GradientTransformation, mesh: Mesh, pad: int | None = None
) -> Callable:
    """The pure function (state, batch, rate, seed, asked_D=None) → (state, StepMetrics). Jit it with the state donated.

    The learning rate (float32 scalar) and the seed (uint32 scalar) are arguments, so runs that differ in them, or in the
    schedule, share compiled programs.

    The devices of the mesh share the rows of a batch. One `psum` adds all their gradients and sums as a single array. Two of
    them in one program can block each other on XLA:CPU with two threads (jaxlib 0.10.2), and between processes each array
    costs a round trip.

    Each row gets a key of its own, folded from the seed, the step and the row's number. The model folds a number into it for
    everything that acts at random, such as dropout in each layer.

    Args:
      pad: id of `<pad>`. Its nats are not reported, even if the loss counts them.

    With several processes, `asked_D` has a number for each local device: whether this process was asked to stop. The sum in
    the metrics then tells all of them.
    """
    (axis,) = mesh.axis_names
    shared, of_rows = PartitionSpec(), PartitionSpec(axis)

    @functools.partial(
        jax.shard_map, mesh=mesh, in_specs=(shared, *4 * (of_rows,)), out_specs=(shared, of_rows), check_vma=False
    )
    def gradients(params, batch, carry, noise_keys_B, asked_D):
        def loss(params):
            logits_BSV, new_carry = functions.apply(params, batch, carry, noise_keys_B)
            loss_sums = objective.nats_and_count(logits_BSV, batch.targets_BS, batch.weights_BS)
            text_sums = loss_sums
            if pad is not None:
                of_text_BS = batch.weights_BS * (batch.inputs_BT[:, -batch.targets_BS.shape[1] :] != pad)
                text_sums = objective.nats_and_count(logits_BSV, batch.targets_BS, of_text_BS)
            return loss_sums[0], ((*text_sums, *loss_sums), new_carry)

        grads, (sums, new_carry) = jax.grad(loss, has_aux=True)(params)
        asked = jax.tree.map(jnp.sum, asked_D)
        sums_N, as_tree = jax.flatten_util.ravel_pytree((grads, sums, asked))
        return as_tree(jax.lax.psum(sums_N, axis)), new_carry

    def train_step(
        state: TrainState, batch: Batch, rate: jax.Array, seed: jax.Array, asked_D: jax.Array | None = None
    ) -> tuple[TrainState, StepMetrics]:
        step_key = jax.random.fold_in(jax.random.key(seed), state.step)
        noise_keys_B = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(step_key, jnp.arange(len(batch.reset_B)))
        (grads, sums, asked), carry = gradients(state.params, batch, state.carry, noise_keys_B, asked_D)
        nats, chars, loss_nats, loss_weight = sums
        grads = jax.tree.map(lambda leaf: leaf / loss_weight, grads)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, jax.tree.map(lambda update: rate * update, updates))
        metrics = StepMetrics(nats, chars, loss_nats, loss_weight, optax.tree.norm(grads), asked)
        return TrainState(state.step + 1, params, opt_state, carry), metrics

    return train_step


def several(train_step: Callable) -> Callable:
    """The pure function (state, batches_K, rates_K, seed) → (state, StepMetrics) of K steps in a row.

    The arrays of the batches, the rates and the metrics have K as their first axis. For small models one call of several
    steps is faster than as many calls.
    """

    def steps(state: TrainState, batches_K: Batch, rates_K: jax.Array, seed: jax.Array) -> tuple[TrainState, StepMetrics]:
        return jax.lax.scan(lambda state, arguments: train_step(state, *arguments, seed), state, (batches_K, rates_K))

    return steps
