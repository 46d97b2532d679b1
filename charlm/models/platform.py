"""The platform for which JAX traces a program.

Some code of the cells only makes programs of XLA:CPU faster: chunks of steps that fit into a cache, layouts in memory,
barriers, and float32 products that replace bfloat16 products. A program for a GPU or TPU must have none of it, so this code
asks `is_cpu`.

The choice is made when JAX traces a function, because it changes shapes and dtypes inside the program. JAX's own
`jax.lax.platform_dependent` chooses later, when the traced program is lowered. `cells/blend` uses it, but its branches must
agree in shapes and dtypes.

By default, a function is traced for the platform of the devices that JAX uses. To lower a function for a platform that this
machine does not have, trace the function in `lowering_for`:

    with platform.lowering_for("cuda"):
        lowered = jax.jit(function).trace(x).lower(lowering_platforms=("cuda",))
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax

# JAX's caches know the value of a user context, so JAX never reuses a function that it traced for another platform.
_chosen = jax.make_user_context(None)


@contextlib.contextmanager
def lowering_for(name: str) -> Iterator[None]:
    """A context in which functions are traced for this platform: `cpu`, `cuda`, `rocm` or `tpu`.

    The program also runs on other platforms and computes the same values, but it may be slower there.
    """
    with _chosen(name):
        yield


def is_cpu() -> bool:
    """Whether the function that JAX is tracing will run on a CPU."""
    return (_chosen.value or jax.default_backend()) == "cpu"


def cpu_barrier(tree: Any) -> Any:
    """The same arrays. On a CPU, XLA does not merge their computation into the operations that use them."""
    return jax.lax.optimization_barrier(tree) if is_cpu() else tree
