"""The recurrence of the cells minGRU and minLSTM (Feng et al. 2024, arXiv:2410.01201).

The new state is a weighted average of the previous state and a candidate g(v). The gate z is the weight of the candidate.

    h = (1 - z) h' + z g(v)     z = sigmoid(u)     g(v) = v + 0.5 if v >= 0, else sigmoid(v)

h' is the state of the previous step. u and v depend on the input of the step alone, not on h'. Therefore h is a linear function
of h', and a window needs no matrix product inside a loop over time. One product before the loop gives u and v for all steps.
The two cells differ only in the formula for u.

`blended` computes h for all steps. On a GPU or TPU it is a parallel scan, `jax.lax.associative_scan`, with log2(T) rounds
instead of T steps. On a CPU it is a loop over time, because each round of the parallel scan reads and writes arrays of all
steps, and 2 cores are too few to gain from the parallelism. On 2 cores, the loop takes 0.3 to 0.7 of the time of the parallel
scan (experiments/2026-11-28-cells/min.md).

The recurrence has the form h = a h' + b. The paper computes the parallel scan in log space, with the logarithms of a, b and h.
Here, the scan uses a, b and h themselves, for three reasons:

- The parallel scan in log space takes 2 to 3 times as long as the parallel scan without logarithms.
- Log space needs the logarithm of the state before the first step, but a text begins with the state 0.
- Log space is not needed. h is a weighted average of positive numbers, so nothing cancels or overflows. If a product of many
  factors a underflows to 0, the older state has no effect on h any more. Its true effect is too small for float32. After 2000
  steps in float32, the largest relative error of h is 2e-7 with z = 0.5 and 2e-6 with z = 0.002. In log space, the error is
  5e-7 for both values of z.

Backward pass. dX is the gradient of the loss with respect to X. dy is the part of dh' that comes directly from the output of
the previous step. dh' is linear in dh, so the same scan computes dh for all steps, from the last step to the first.

    dh' = (1 - z) dh + dy     dz = dh (g - h')     dg = dh z

Letters: T time, B batch, I input features, H hidden units, G pre-activations of all gates, V rows of a table.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from charlm.models.cells import Cell, Inputs, Inside, Params, is_ids
from charlm.models.cells.deferred import input_products
from charlm.models.cells.lstm import with_table
from charlm.models.products import operand, product


class Prepared(NamedTuple):
    """One layer's weights, in the layout that the step needs to read one character at a time.

    Attributes:
      kernel: float32 (V, G), the input kernel plus the bias, if the inputs are ids. Otherwise the input kernel (I, G), rounded
        to the dtype of matrix products.
      bias_G: float32.
    """

    kernel: jax.Array
    bias_G: jax.Array


def cell(title: str, keys: tuple[str, ...], gates: int, parameters: Callable, pre_activations: Callable) -> Cell:
    """Makes a cell with the recurrence that is described at the top of this file.

    Args:
      title, keys, parameters: see `Cell`. The keys of recurrent dropout and zoneout are added to `keys`. `parameters` must
        declare `input_kernel` (I, gates * H) and `bias` (gates * H,).
      gates: number of gates, including the candidate.
      pre_activations: (x_…G) → (u_…H, v_…H). x is the product of the input and the input kernel, plus the bias.
    """

    def window(
        params: Params, inputs: Inputs, h_BH: jax.Array, dtype: jnp.dtype, noise_keys_B: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        del noise_keys_B  # the cell uses no random numbers
        x_TBG = input_products(inputs, params["input_kernel"], dtype) + params["bias"][None, None, :]
        u_TBH, v_TBH = pre_activations(x_TBG)
        hidden_TBH = blended(jax.nn.sigmoid(u_TBH), candidate(v_TBH), h_BH)
        return hidden_TBH, hidden_TBH[-1]

    def prepare(params: Params, rows: int, dtype: jnp.dtype, ids: bool) -> Prepared:
        kernel_IG, bias_G = params["input_kernel"], params["bias"]
        return Prepared(kernel_IG + bias_G[None, :] if ids else operand(kernel_IG, dtype, rows), bias_G)

    def step(
        weights: Prepared, x: Inputs, h_BH: jax.Array, dtype: jnp.dtype, factor_BH: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        z_BH, g_BH = gates_of(weights, x, dtype)
        g_BH = g_BH if factor_BH is None else g_BH * factor_BH
        h_BH = h_BH + z_BH * (g_BH - h_BH)
        return h_BH, h_BH

    def look(weights: Prepared, x: Inputs, h_BH: jax.Array, dtype: jnp.dtype) -> Inside:
        del h_BH
        z_BH, candidate_BH = gates_of(weights, x, dtype)
        return Inside({"z": z_BH}, {"g": candidate_BH})

    def gates_of(weights: Prepared, x: Inputs, dtype: jnp.dtype) -> tuple[jax.Array, jax.Array]:
        if is_ids(x):
            x_BG = jnp.take(weights.kernel, x, axis=0, mode="clip")
        else:
            x_BG = product(x, weights.kernel, dtype) + weights.bias_G[None, :]
        u_BH, v_BH = pre_activations(x_BG)
        return jax.nn.sigmoid(u_BH), candidate(v_BH)

    return Cell(
        title=title,
        state_title="h",
        keys=(*keys, "model.recurrent_dropout", "model.zoneout_hidden"),
        parameters=parameters,
        zero_state=lambda rows, hidden: jnp.zeros((rows, hidden)),
        window=window,
        with_table=with_table,
        prepare=prepare,
        step=step,
        operations=lambda inputs, hidden, config: gates * hidden * inputs,
        look=look,
    )


def candidate(v: jax.Array) -> jax.Array:
    """The paper's function g, which is positive, continuous and increasing."""
    return jnp.where(v >= 0, v + 0.5, jax.nn.sigmoid(v))


@jax.custom_vjp
def blended(z_TBH: jax.Array, candidate_TBH: jax.Array, h_BH: jax.Array) -> jax.Array:
    """The states (T, B, H) of all steps. The state of a step is (1 - z) h' + z candidate, where h' is the previous state.

    h_BH is the state before the first step.
    """
    return _linear(1 - z_TBH, z_TBH * candidate_TBH, h_BH, reverse=False)


def _blended_fwd(z_TBH, candidate_TBH, h_BH):
    hidden_TBH = blended(z_TBH, candidate_TBH, h_BH)
    return hidden_TBH, (z_TBH, candidate_TBH, h_BH, hidden_TBH)


def _blended_bwd(saved, d_hidden_TBH):
    z_TBH, candidate_TBH, h_BH, hidden_TBH = saved
    keep_TBH = 1 - z_TBH
    # passed_TBH[t] is the gradient that step t passes to the state before it. The last step gets no such gradient from a later
    # step, so this scan starts with zeros.
    passed_TBH = _linear(keep_TBH, keep_TBH * d_hidden_TBH, jnp.zeros_like(h_BH), reverse=True)
    d_h_TBH = d_hidden_TBH + jnp.concatenate([passed_TBH[1:], jnp.zeros_like(passed_TBH[:1])])
    previous_TBH = jnp.concatenate([h_BH[None], hidden_TBH[:-1]])
    return d_h_TBH * (candidate_TBH - previous_TBH), d_h_TBH * z_TBH, passed_TBH[0]


blended.defvjp(_blended_fwd, _blended_bwd)


def _linear(a_TBH: jax.Array, b_TBH: jax.Array, h_BH: jax.Array, reverse: bool) -> jax.Array:
    """The states (T, B, H) of all steps. The state of a step is a h' + b, where h' is the previous state.

    If `reverse` is True, the scan starts at index T - 1 of the arrays and ends at index 0. Then the previous state of index t
    is the state of index t + 1.
    """
    by_loop, in_parallel = (functools.partial(each, reverse=reverse) for each in (_by_loop, _in_parallel))
    return jax.lax.platform_dependent(a_TBH, b_TBH, h_BH, cpu=by_loop, default=in_parallel)


def _by_loop(a_TBH: jax.Array, b_TBH: jax.Array, h_BH: jax.Array, reverse: bool) -> jax.Array:
    def one(h_BH, factors):
        a_BH, b_BH = factors
        h_BH = a_BH * h_BH + b_BH
        return h_BH, h_BH

    return jax.lax.scan(one, h_BH, (a_TBH, b_TBH), reverse=reverse)[1]


def _in_parallel(a_TBH: jax.Array, b_TBH: jax.Array, h_BH: jax.Array, reverse: bool) -> jax.Array:
    # A pair (a, b) stands for the function h' → a h' + b. `joined` gives the pair of two such functions, one after the other.
    def joined(earlier, later):
        (a_earlier, b_earlier), (a_later, b_later) = earlier, later
        return a_earlier * a_later, a_later * b_earlier + b_later

    first = -1 if reverse else 0
    b_TBH = b_TBH.at[first].add(a_TBH[first] * h_BH)
    return jax.lax.associative_scan(joined, (a_TBH, b_TBH), reverse=reverse)[1]
