"""Runs a layer of an LSTM over a window with cuDNN, NVIDIA's library, instead of a loop of XLA.

`jax.experimental.rnn.lstm` calls cuDNN for one layer. Dropout and weight drop stay outside: the dropout of this function has a
fixed seed, so it is not used. This code has not run on a GPU yet. On a CPU, the tests replace this function by `lstm_ref`, its
equivalent in pure JAX. JAX's own tests compare the two on GPUs.

- cuDNN takes all weights of a layer as one array; see `packed`. The params, and so the checkpoints, stay the same.
- cuDNN reads floats only. If the inputs are ids, it reads rows of the embedding, or one-hot vectors.
- Operands and sums are float32. `model.precision` sets whether the products use TF32, as for all products of a model.
- JAX can compute the gradient of a call, but has no forward mode and no `vmap` for it. Each call waits for the host, which
  breaks XLA's command buffers.

Letters: T time, B batch, I input features, H hidden units, G = 4H gate pre-activations, V rows of a table, with one row for
each id, N values of all weights of a layer.
"""

import jax
import jax.numpy as jnp

from charlm.hardware import devices
from charlm.models.cells import Cell, Params, State, is_ids
from charlm.models.cells.deferred import look_up

# The names under which `with_cudnn` adds the table and the original input kernel to the params.
TABLE, TABLE_KERNEL = "cudnn_table", "cudnn_table_kernel"


def with_cudnn(cell: Cell) -> Cell:
    """The cell with a window that uses cuDNN if JAX computes on a CUDA device. Elsewhere, the window is `cell.window`.

    Args:
      cell: a cell whose params, state and results are those of the LSTM.
    """

    def window(params, inputs, state, dtype, noise_keys_B=None):
        if devices.is_cuda():
            return lstm(params, inputs, state)
        return cell.window(params, inputs, state, dtype, noise_keys_B)

    def with_table(params: Params, table_VI: jax.Array) -> Params:
        return cell.with_table(params, table_VI) | {TABLE: table_VI, TABLE_KERNEL: params["input_kernel"]}

    return cell._replace(window=window, with_table=with_table)


def lstm(params: Params, inputs: jax.Array, state: State) -> tuple[jax.Array, State]:
    """Runs one layer over a window by cuDNN.

    Args:
      params: `input_kernel` (I, 4H), `recurrent_kernel` (H, 4H) and `bias` (4H,), float32. The gates have the order i, f, g, o.
        If the inputs are ids, the params may also have the table and the original input kernel, which `with_cudnn` adds.
      inputs: float32 (T, B, I), or ids (T, B) that select rows of the table, or of the input kernel if there is no table.
      state: (c_BH, h_BH), float32.

    Returns:
      (hidden_TBH, (c_BH, h_BH)): the float32 outputs of all steps, and the state after the last step.
    """
    from jax.experimental import rnn  # a part of JAX that may change; only users of cuDNN need it

    c_BH, h_BH = state
    x_TBI, kernel_IG = _features(params, inputs)
    weights_N = packed(kernel_IG, params["recurrent_kernel"], params["bias"])
    steps, rows, features = x_TBI.shape
    lengths_B = jnp.full(rows, steps, jnp.int32)
    # The numbers are the number of layers and the dropout. False: one direction. None: the precision that the
    # context sets (`products.in_precision`).
    options = features, h_BH.shape[1], 1, 0.0, False, None
    outputs_BTH, h_1BH, c_1BH = rnn.lstm(x_TBI.swapaxes(0, 1), h_BH[None], c_BH[None], weights_N, lengths_B, *options)
    return outputs_BTH.swapaxes(0, 1), (c_1BH[0], h_1BH[0])


def packed(input_kernel_IG: jax.Array, recurrent_kernel_HG: jax.Array, bias_G: jax.Array) -> jax.Array:
    """The weights of a layer as the array (N,) that cuDNN reads.

    The array holds W_ih (4H, I), W_hh (4H, H), b_ih (4H,) and b_hh (4H,), one after the other, each row by row. These are the
    arrays of PyTorch's LSTM. cuDNN adds the two biases, so the second bias is zero.
    """
    parts = input_kernel_IG.T, recurrent_kernel_HG.T, bias_G, jnp.zeros_like(bias_G)
    return jnp.concatenate([part.reshape(-1) for part in parts])


def _features(params: Params, inputs: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The input features (T, B, I), and the input kernel (I, 4H) that multiplies them."""
    if not is_ids(inputs):
        return inputs, params["input_kernel"]
    if TABLE in params:
        return look_up(params[TABLE], inputs, jnp.dtype(jnp.float32)), params[TABLE_KERNEL]
    kernel_VG = params["input_kernel"]
    return jax.nn.one_hot(inputs, kernel_VG.shape[0], dtype=kernel_VG.dtype), kernel_VG
