"""Tests that the fast LSTM equals a plain scan over a textbook cell, in value and in gradient (invariant 7)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import slow

from charlm.models import products
from charlm.models.cells import chunks
from charlm.models.cells.lstm import lstm


def gated(z, x):
    return jax.nn.sigmoid(z) * x


def entering(z, candidate):
    return jax.nn.sigmoid(z) * jnp.tanh(candidate)


def textbook(
    inputs_TBI, input_kernel, bias, recurrent_kernel, c, h, product=jnp.matmul, total=sum, gated=gated, entering=entering
):
    """The textbook LSTM as a scan over its steps. JAX derives its gradient. The fast LSTM has a hand-written gradient."""

    def step(carry, x):
        c, h = carry
        i, f, g, o = jnp.split(total((product(x, input_kernel), bias[None, :], product(h, recurrent_kernel))), 4, axis=-1)
        c = gated(f, c) + entering(i, g)
        h = gated(o, jnp.tanh(c))
        return (c, h), h

    carry, outputs = jax.lax.scan(step, (c, h), inputs_TBI)
    return outputs, carry


def arguments(steps, batch=3, features=5, hidden=4, dtype=np.float32):
    rng = np.random.default_rng(steps)
    shapes = [
        (steps, batch, features),
        (features, 4 * hidden),
        (4 * hidden,),
        (hidden, 4 * hidden),
        (batch, hidden),
        (batch, hidden),
    ]
    return [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]


def scalar(run):
    """A function that returns a weighted sum of all outputs of `run`, so that its gradient can be taken.

    The weights differ, so that errors in the gradient do not cancel.
    """

    def value(*args):
        outputs, (c, h) = run(*args)
        leaves = [outputs, c, h]
        weights = [jnp.sin(jnp.arange(leaf.size, dtype=leaf.dtype)).reshape(leaf.shape) for leaf in leaves]
        return sum((leaf * weight).sum() for leaf, weight in zip(leaves, weights, strict=True))

    return value


# A window of 32 steps is split into two chunks of 16 steps. Windows of 1, 7, 16 or 23 steps are one chunk.
# 16 rows of float32 fill the widest vector of a CPU, and 3 rows do not.
@pytest.mark.parametrize(
    ("steps", "batch"),
    [
        *((1, 16), (23, 3), (32, 16)),
        *(slow(*each) for each in ((1, 3), (7, 3), (7, 16), (16, 3), (16, 16), (23, 16), (32, 3))),
    ],
)
def test_the_lstm_equals_the_textbook_cell_in_value_and_gradient(steps, batch, monkeypatch):
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 0)  # with the usual CHUNK_BYTES, a small window is always one chunk
    args = arguments(steps, batch)
    outputs, carry = lstm(*args)
    expected, expected_carry = textbook(*args)
    np.testing.assert_allclose(outputs, expected, atol=2e-6)
    np.testing.assert_allclose(carry[0], expected_carry[0], atol=2e-6)
    np.testing.assert_allclose(carry[1], expected_carry[1], atol=2e-6)
    gradients = jax.jit(jax.grad(scalar(lstm), argnums=range(6)))(*args)
    expected_gradients = jax.jit(jax.grad(scalar(textbook), argnums=range(6)))(*args)
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(gradient, expected_gradient, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("steps", [7, 32])
def test_ids_give_the_same_result_as_one_hot_rows(steps):
    _, kernel, bias, recurrent, c, h = arguments(steps)
    ids = jnp.asarray(np.random.default_rng(0).integers(0, 5, (steps, 3)))
    one_hot = jax.nn.one_hot(ids, 5)
    by_ids = lambda *weights: lstm(ids, *weights, c, h)  # noqa: E731
    by_rows = lambda *weights: textbook(one_hot, *weights, c, h)  # noqa: E731
    np.testing.assert_allclose(by_ids(kernel, bias, recurrent)[0], by_rows(kernel, bias, recurrent)[0], atol=2e-6)
    gradients = jax.jit(jax.grad(scalar(by_ids), argnums=(0, 1, 2)))(kernel, bias, recurrent)
    expected = jax.jit(jax.grad(scalar(by_rows), argnums=(0, 1, 2)))(kernel, bias, recurrent)
    for gradient, expected_gradient in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(gradient, expected_gradient, rtol=2e-4, atol=2e-5)


def test_gradients_equal_finite_differences_in_float64():
    with jax.enable_x64(True):
        args = arguments(9, batch=2, features=3, hidden=3, dtype=np.float64)
        value = jax.jit(scalar(lambda *args: lstm(*args, jnp.float64)))
        gradients = jax.grad(value, argnums=range(6))(*args)
        rng = np.random.default_rng(1)
        for position, (arg, gradient) in enumerate(zip(args, gradients, strict=True)):
            direction = rng.normal(size=arg.shape)
            shifted = lambda by, position=position, direction=direction: value(  # noqa: E731
                *[a + by * direction if k == position else a for k, a in enumerate(args)]
            )
            difference = (shifted(1e-5) - shifted(-1e-5)) / 2e-5
            np.testing.assert_allclose((gradient * direction).sum(), difference, rtol=1e-7)


def test_a_single_row_is_rounded_to_bfloat16_like_several_rows():
    """On a CPU, `products.operand` rounds a single row to bfloat16 precision, but the product is computed in float32.

    The result must be the same as for several rows.
    """
    left, right = (jax.random.normal(jax.random.key(number), shape) for number, shape in enumerate([(5, 64), (64, 96)]))
    rounded = np.asarray(left.astype(jnp.bfloat16), np.float64) @ np.asarray(right.astype(jnp.bfloat16), np.float64)
    for rows in (1, 5):
        np.testing.assert_allclose(products.product(left[:rows], right, jnp.bfloat16), rounded[:rows], rtol=0, atol=2e-5)
    assert np.abs(np.asarray(left @ right) - rounded).max() > 1e-3  # the check above would fail for a product without rounding


def test_bfloat16_rounds_products_but_keeps_float32_state():
    args = arguments(48)
    outputs, carry = lstm(*args, jnp.bfloat16)
    expected, _ = lstm(*args)
    assert {leaf.dtype for leaf in (outputs, *carry)} == {jnp.dtype(jnp.float32)}
    error = np.abs(outputs - expected).max()
    assert 0 < error < 0.1
    gradient = jax.grad(scalar(lambda *args: lstm(*args, jnp.bfloat16)), argnums=3)(*args)
    expected_gradient = jax.grad(scalar(lstm), argnums=3)(*args)
    assert gradient.dtype == jnp.float32
    cosine = (gradient * expected_gradient).sum() / jnp.linalg.norm(gradient) / jnp.linalg.norm(expected_gradient)
    assert cosine > 0.99


def rounded(x):
    return x.astype(jnp.bfloat16).astype(jnp.float32)


def rounded_textbook(*args):
    """The textbook LSTM, but these values are rounded to bfloat16: the operands of every product, in the forward and the
    backward pass; the gradients of the pre-activations; and the factors by which these gradients are computed from dc and dh.
    """

    @jax.custom_vjp
    def product(a, b):
        return rounded(a) @ rounded(b)

    backward = lambda saved, d: (d @ rounded(saved[1]).T, rounded(saved[0]).T @ d)  # noqa: E731
    product.defvjp(lambda a, b: (product(a, b), (a, b)), backward)

    @jax.custom_vjp
    def total(parts):
        return sum(parts)

    total.defvjp(lambda parts: (total(parts), None), lambda _, d: ((rounded(d), rounded(d).sum(0, keepdims=True), rounded(d)),))

    def with_rounded_factors(function, both):
        """A function of two arrays that JAX differentiates as d · rounded(factor), for the first argument or for both."""
        wrapped = jax.custom_vjp(function)

        def backward(args, d):
            first, second = jax.vjp(function, *args)[1](jnp.ones_like(d))
            return d * rounded(first), d * (rounded(second) if both else second)

        wrapped.defvjp(lambda *args: (function(*args), args), backward)
        return wrapped

    return textbook(*args, product, total, with_rounded_factors(gated, False), with_rounded_factors(entering, True))


@pytest.mark.parametrize("batch", [3, 16])  # 16 rows of float32 fill the widest vector of a CPU
def test_bfloat16_equals_the_textbook_cell_with_rounded_operands_in_value_and_gradient(batch):
    args = arguments(12, batch)
    run = lambda *args: lstm(*args, jnp.bfloat16)  # noqa: E731
    outputs, _ = run(*args)
    np.testing.assert_allclose(outputs, rounded_textbook(*args)[0], atol=1e-3)
    gradients, expected, unrounded = (
        jax.jit(jax.grad(scalar(each), argnums=range(6)))(*args) for each in (run, rounded_textbook, textbook)
    )
    for gradient, expected_gradient, unrounded_gradient in zip(gradients, expected, unrounded, strict=True):
        assert gradient.dtype == jnp.float32
        error, error_without_rounding = (
            np.linalg.norm(gradient - each) / np.linalg.norm(each) for each in (expected_gradient, unrounded_gradient)
        )
        assert error < 1e-3 < error_without_rounding
