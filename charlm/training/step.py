"""The training step: a pure function that is compiled as a whole.

The last letters of an array name are its axes: B rows of the batch, T time, S scored positions, V vocabulary, K steps of one
call, D devices, N elements of the flat array of gradients and sums.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, PartitionSpec

from charlm.data.batches import Batch
from charlm.models import objective
from charlm.models.stack import Functions
from charlm.training.averaging import Average, Averaging, at_gradient, updated

# The number that is folded into the key of a step to make the key of the masks that all rows share. No row has this index.
SHARED = np.uint32(2**32 - 1)


class TrainState(NamedTuple):
    """The arrays that a training step updates.

    Attributes:
      step: int32 scalar, the number of steps made so far. This number and the seed determine all random numbers, so no random
        key is stored.
      params: the raw parameters.
      carry: the recurrent state that one step passes to the next.
      average: the average of the parameters; None without averaging.
    """

    step: jax.Array
    params: Any
    opt_state: optax.OptState
    carry: tuple
    average: Average | None = None


class StepMetrics(NamedTuple):
    """Scalars of one step, summed over all devices.

    Attributes:
      nats, chars: sum of the loss over the characters of the text, and the number of these characters. Both exclude padding.
      loss_nats, loss_weight: weighted sum of the loss over all positions, and the sum of the weights of these positions. A
        position of padding may have a weight above 0.
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
    functions: Functions,
    optimizer: optax.GradientTransformation,
    mesh: Mesh | None,
    pad: int | None = None,
    averaging: Averaging | None = None,
) -> Callable:
    """Returns the pure function (state, batch, rate, seed, asked_D=None) → (state, StepMetrics).

    The caller compiles the function with `jax.jit` and donates the state, so that its memory is reused.

    The learning rate (float32 scalar) and the seed (uint32 scalar) are arguments. Runs with different seeds, learning rates or
    schedules can therefore use the same compiled program.

    The rows of a batch are divided among the devices of the mesh. All gradients and sums are joined to one array, and a single
    `psum` adds this array over all devices. There are two reasons: two `psum` calls in one program can deadlock on XLA:CPU with
    two threads (jaxlib 0.10.2), and with several processes each extra array would cost a round trip between the processes.

    Each row has its own random key, made from the seed, the step and the index of the row. The model folds a different number
    into the key for each random operation, such as dropout in each layer. Masks that are the same for all rows, such as the
    masks of weight drop, are drawn from a key of the step, so they are the same on all devices.

    The gradient is computed from the sum of the loss and the model's penalty. The metrics never include the penalty.

    With several processes, `asked_D` has one number per device: 1 if the process of the device was asked to stop, else 0. The
    metrics contain the sum of these numbers, so every process learns whether any process was asked to stop.

    Args:
      mesh: the devices. None: the function runs on one device, and is a part of a program that divides the devices itself.
      pad: id of `<pad>`. The reported nats exclude padding, even if the loss counts padding.
      averaging: how the parameters are averaged; None: the state has no average.
    """

    def gradients(params, shared_key, batch, carry, noise_keys_B, asked_D):
        def loss(params):
            logits_BSV, new_carry, penalty = functions.penalised(params, batch, carry, noise_keys_B, shared_key)
            loss_sums = objective.nats_and_count(logits_BSV, batch.targets_BS, batch.weights_BS)
            text_sums = loss_sums
            if pad is not None:
                of_text_BS = batch.weights_BS * (batch.inputs_BT[:, -batch.targets_BS.shape[1] :] != pad)
                text_sums = objective.nats_and_count(logits_BSV, batch.targets_BS, of_text_BS)
            penalised = loss_sums[0] if penalty is None else loss_sums[0] + penalty
            return penalised, ((*text_sums, *loss_sums), new_carry)

        grads, (sums, new_carry) = functions.grad(loss, has_aux=True)(params)
        asked = jax.tree.map(jnp.sum, asked_D)
        if mesh is None:
            return (grads, sums, asked), new_carry
        sums_N, as_tree = jax.flatten_util.ravel_pytree((grads, sums, asked))
        return as_tree(jax.lax.psum(sums_N, mesh.axis_names[0])), new_carry

    if mesh is not None:
        replicated, by_row = PartitionSpec(), PartitionSpec(*mesh.axis_names)
        in_specs = (replicated, replicated, *4 * (by_row,))
        gradients = jax.shard_map(gradients, mesh=mesh, in_specs=in_specs, out_specs=(replicated, by_row), check_vma=False)

    def train_step(
        state: TrainState, batch: Batch, rate: jax.Array, seed: jax.Array, asked_D: jax.Array | None = None
    ) -> tuple[TrainState, StepMetrics]:
        step_key = jax.random.fold_in(jax.random.key(seed), state.step)
        noise_keys_B = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(step_key, jnp.arange(len(batch.reset_B)))
        shared_key = jax.random.fold_in(step_key, SHARED) if functions.needs_shared_key else None
        point = at_gradient(averaging, state.params, state.average)
        (grads, sums, asked), carry = gradients(point, shared_key, batch, state.carry, noise_keys_B, asked_D)
        nats, chars, loss_nats, loss_weight = sums
        grads = jax.tree.map(lambda leaf: leaf / loss_weight, grads)
        updates, opt_state = optimizer.update(grads, state.opt_state, point)
        params = optax.apply_updates(state.params, jax.tree.map(lambda update: rate * update, updates))
        metrics = StepMetrics(nats, chars, loss_nats, loss_weight, optax.tree.norm(grads), asked)
        average = updated(averaging, state.average, params, state.step + 1, rate)
        return TrainState(state.step + 1, params, opt_state, carry, average), metrics

    return train_step


def several(train_step: Callable) -> Callable:
    """Returns the pure function (state, batches_K, rates_K, seed, asked_KD=None) → (state, StepMetrics) that makes K steps.

    The first axis of the batches, the rates, `asked_KD` and the metrics is K. For small models, one call of K steps is faster
    than K calls of one step.
    """

    def steps(
        state: TrainState, batches_K: Batch, rates_K: jax.Array, seed: jax.Array, asked_KD: jax.Array | None = None
    ) -> tuple[TrainState, StepMetrics]:
        def one(state, arguments):
            batch, rate, asked_D = arguments
            return train_step(state, batch, rate, seed, asked_D)

        return jax.lax.scan(one, state, (batches_K, rates_K, asked_KD))

    return steps
