"""What a trajectory costs in multiply-adds, in JAX, and on what it runs.

The twin of `probgram.inference.cost`, and of the same weights the same count: that of the matrix products and
convolutions in the traced program. (XLA's own count has the elementwise work in it, and a loop's body only once.)
"""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro

from probgram.inference.on_jax.handlers import as_key, mode, seeded, start
from probgram.inference.on_jax.sampling import as_problems
from probgram.models.on_jax.chain import Chain


def multiply_adds(chain: Chain, x: Any, depth: int, width: int = 1) -> int:
    """Count the multiply-adds of a problem: its encoding, then S depth steps, readout and heads after each of them.

    Args:
        chain: any chain.
        x: a problem `[L]`, or problems `[B, L]` of which the first is counted.
        depth: S, depth steps.
        width: N, trajectories; what is encoded once is counted once.

    Returns:
        Multiply-adds, half of the floating-point operations. Of branches the dearer one counts, and of a loop whose
        length only its data say one round.

    Raises:
        ValueError: as `sample`.
    """
    problem, key = jnp.asarray(as_problems(x, chain)[:1]), as_key(0)

    def begin() -> tuple[Any, Any]:
        context = chain.encode(problem)
        with seeded(key), numpyro.plate("particles", width, dim=-2), numpyro.plate("problems", 1, dim=-1):
            return context, start(chain, (width, 1), context)

    def depth_step(context: Any, state: Any, t: Any) -> Any:
        with seeded(key), numpyro.plate("particles", width, dim=-2), numpyro.plate("problems", 1, dim=-1):
            state = chain.step(state, t, context)
        return chain.heads(state), mode(chain.readout(state))

    context, state = eqx.filter_eval_shape(begin)
    t = jax.ShapeDtypeStruct((), jnp.asarray(0).dtype)
    first, each = (
        _products(eqx.filter_make_jaxpr(part)(*values)[0])
        for part, values in ((begin, ()), (depth_step, (context, state, t)))
    )
    return first + depth * each


def _products(program: Any) -> int:
    """Multiply-adds of a jaxpr, and of those that it calls."""
    total = 0
    for equation in program.eqns:
        name, said, out = equation.primitive.name, equation.params, equation.outvars[0].aval
        if name == "dot_general":
            (contracted, _), _ = said["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            total += math.prod(out.shape) * math.prod(shape[dim] for dim in contracted)
        elif name == "conv_general_dilated":
            kernel = equation.invars[1].aval.shape
            total += math.prod(out.shape) * math.prod(kernel) // kernel[said["dimension_numbers"].rhs_spec[0]]
        else:
            parts = [_products(part) for part in jax.tree.leaves(dict(said)) if hasattr(part, "eqns")]
            called = max(parts, default=0) if name == "cond" else sum(parts)
            total += called * (said["length"] if name == "scan" else 1)
    return total


def machine(chain: Chain) -> dict[str, Any]:
    """The kind of device that a chain's weights are on, the default one where it has none."""
    weights = next(iter(chain.state_dict().values()), None)
    device = jax.default_backend() if weights is None else next(iter(jnp.asarray(weights).devices())).platform
    return {"device": device, "backend": "jax"}
