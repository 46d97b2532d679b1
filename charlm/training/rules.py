"""Update rules that Optax does not have as a single function.

Each rule computes updates for a learning rate of 1, without a minus sign. `optim.optimizer` adds the minus sign.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

MUON_RMS = 0.2  # root mean square of Muon's updates; with 0.2, Muon can use AdamW's learning rate (Liu et al. 2025)


class AdanState(NamedTuple):
    """The number of steps, running means of the gradient, of its differences and of the squares, and the last gradient."""

    number: jax.Array
    mean: optax.Updates
    difference: optax.Updates
    square: optax.Updates
    last: optax.Updates


def keras_adam(beta1: float, beta2: float, eps: float) -> optax.GradientTransformation:
    """Adam that adds eps to sqrt(v) before the bias correction of v. v is the running mean of the squared gradient.

    In step t, the result equals the result of `optax.scale_by_adam` with eps / sqrt(1 - beta2^t) instead of eps.
    """

    def init(params: optax.Params) -> optax.OptState:
        return optax.scale_by_adam(beta1, beta2).init(params)

    def update(
        updates: optax.Updates, state: optax.OptState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.OptState]:
        correction = jnp.sqrt(1 - beta2 ** (state.count + 1).astype(jnp.float32))
        return optax.scale_by_adam(beta1, beta2, eps / correction).update(updates, state, params)

    return optax.GradientTransformation(init, update)


def adafactor(momentum: float) -> optax.GradientTransformation:
    """Adafactor (Shazeer & Stern 2018).

    The mean squared gradient of every matrix is stored in factored form. Each update is relative to the scale of its parameter.
    """
    return optax.chain(
        optax.scale_by_factored_rms(min_dim_size_to_factor=1),
        optax.clip_by_block_rms(1.0),
        optax.scale_by_param_block_rms(),
        optax.ema(momentum, debias=False) if momentum > 0 else optax.identity(),
    )


def adan(mean_decay: float, square_decay: float, difference_decay: float, eps: float) -> optax.GradientTransformation:
    """Adan (Xie et al. 2022, algorithm 1, with the authors' correction for bias).

    A decay rate d here is 1 - d in the notation of the paper. `optax.scale_by_adan` of Optax 0.2.8 is not used, because it
    multiplies the differences by 1 - `difference_decay` instead of `difference_decay`.
    """

    def init(params: optax.Params) -> AdanState:
        zeros = [optax.tree.zeros_like(params) for _ in range(4)]
        return AdanState(jnp.zeros((), jnp.int32), *zeros)

    def update(updates: optax.Updates, state: AdanState, params: optax.Params | None = None) -> tuple[optax.Updates, AdanState]:
        del params
        # The first gradient has no gradient before it, so the first difference is 0.
        change = jax.tree.map(lambda new, last: jnp.where(state.number == 0, 0, new - last), updates, state.last)
        ahead = optax.tree.add_scale(updates, difference_decay, change)
        mean = optax.tree.update_moment(updates, state.mean, mean_decay, 1)
        difference = optax.tree.update_moment(change, state.difference, difference_decay, 1)
        square = optax.tree.update_moment(ahead, state.square, square_decay, 2)
        count = state.number + 1
        corrected = optax.tree.add_scale(
            optax.tree.bias_correction(mean, mean_decay, count),
            difference_decay,
            optax.tree.bias_correction(difference, difference_decay, count),
        )
        roots = jax.tree.map(jnp.sqrt, optax.tree.bias_correction(square, square_decay, count))
        result = jax.tree.map(lambda up, root: up / (root + eps), corrected, roots)
        return result, AdanState(count, mean, difference, square, updates)

    return optax.GradientTransformation(init, update)


def muon(momentum: float, adam: optax.GradientTransformation) -> optax.GradientTransformation:
    """Muon (Jordan et al. 2024) for the matrices of the layers, and Adam for all other parameters.

    Muon makes the singular values of an update roughly equal. An update of Muon is then scaled as in Liu et al. 2025, so that
    Muon and Adam can have the same learning rate.
    """

    def axes(updates: optax.Updates) -> optax.Updates:
        return jax.tree.map(lambda leaf: optax.contrib.MuonDimensionNumbers(leaf.ndim - 2, leaf.ndim - 1), updates)

    def scaled(updates: optax.Updates, params: optax.Params | None) -> optax.Updates:
        del params
        return jax.tree.map(lambda leaf: MUON_RMS * max(leaf.shape[-2:]) ** 0.5 * leaf, updates)

    by_muon = optax.chain(optax.contrib.scale_by_muon(beta=momentum, weight_dimension_numbers=axes), optax.stateless(scaled))
    return optax.partition({"muon": by_muon, "adam": adam}, muon_or_adam)


def muon_or_adam(params: optax.Params) -> optax.Params:
    """For each parameter, `muon` or `adam`.

    The authors of Muon use Adam for the embedding, the head and all vectors. If the model has no embedding, the input kernel of
    the first layer takes its place: it has one row for each symbol.
    """

    def label(path: tuple, leaf: jax.Array) -> str:
        names = [entry.key for entry in path]
        is_table = "embedding" not in params and names[0].endswith("_0") and names[-1] == "input_kernel"
        return "muon" if len(names) > 1 and leaf.ndim > 1 and not is_table else "adam"

    return jax.tree_util.tree_map_with_path(label, params)
