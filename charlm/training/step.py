"""The training step: a pure function that is compiled as a whole.

Letters: B batch (rows), T time, S scored positions, V vocabulary, K steps of one call, D devices, N length of the flat array
of gradients and sums.
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
    """The arrays that a training step updates.

    Attributes:
      step: int32 scalar, the number of steps made. This number and the seed determine all random numbers; no key is stored.
      carry: the recurrent state that one step passes to the next.
    """

    step: jax.Array
    params: Any
    opt_state: optax.OptState
    carry: tuple


class StepMetrics(NamedTuple):
    """Scalars of one step, summed over all devices.

    Attributes:
      nats, chars: sum of the loss over the characters of text, and the number of these characters.
      loss_nats, loss_weight: sum of the loss over all positions that the loss counts, and the sum of their weights. They may
        include padding.
      grad_norm: global norm of the gradient before clipping.
      asked_to_stop: number of devices whose process was asked to stop; None with a single process.
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

    The learning rate (float32 scalar) and the seed (uint32 scalar) are arguments. Runs with different seeds, learning rates or
    schedules therefore share compiled programs.

    The devices of the mesh share the rows of a batch. A single `psum` adds the gradients and sums of all devices as one array.
    Two `psum` calls in one program can deadlock on XLA:CPU with two threads (jaxlib 0.10.2). Between processes, each extra
    array costs a round trip.

    Each row has its own random key, made from the seed, the step and the index of the row. The model folds a different number
    into the key for each random operation, such as dropout in each layer.

    With several processes, `asked_D` has one number per device: 1 if the process of the device was asked to stop, else 0. The
    sum in the metrics tells every process whether any process was asked.

    Args:
      pad: id of `<pad>`. The reported nats exclude padding, even if the loss counts padding.
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
    """The pure function (state, batches_K, rates_K, seed) → (state, StepMetrics) that makes K steps.

    The first axis of the batches, the rates and the metrics is K. For small models, one call of K steps is faster than K calls
    of one step.
    """

    def steps(state: TrainState, batches_K: Batch, rates_K: jax.Array, seed: jax.Array) -> tuple[TrainState, StepMetrics]:
        return jax.lax.scan(lambda state, arguments: train_step(state, *arguments, seed), state, (batches_K, rates_K))

    return steps
