"""Between which values a program's results lie: ranges that are known, and none where nothing shows one."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from dnt.diagnostics import bounds


@pytest.mark.parametrize(
  ('program', 'expected'),
  [
    (nn.sigmoid, (0, 1)),
    (lambda x: nn.sigmoid(x - 12).astype(jnp.bfloat16).astype(jnp.float32), (0, 1)),
    (lambda x: 1 - nn.sigmoid(x).T.reshape(2, 6), (0, 1)),
    (lambda x: jnp.tanh(x) * 0.5, (-0.5, 0.5)),
    (lambda x: jnp.tanh(x) / -4, (-0.25, 0.25)),
    (lambda x: 30 * jnp.tanh(x / 30), (-30, 30)),
    (jax.checkpoint(lambda x: 1 + 2 * jnp.tanh(x)), (-1, 3)),
    (lambda x: jnp.clip(x, -1, 2), (-1, 2)),
    (nn.relu6, (0, 6)),
    (nn.relu, (0, jnp.inf)),
    (lambda x: x + 1, bounds.ANY),
    (lambda x: x * 0.0, bounds.ANY),
    (lambda x: x / jnp.tanh(x), bounds.ANY),
    (nn.gelu, bounds.ANY),
    (lambda x: nn.sigmoid(x) @ jnp.ones((4, 2)), bounds.ANY),
    (lambda x: jax.lax.scan(lambda total, row: (total + 1, row), jnp.tanh(x[0]), x)[0], bounds.ANY),
    (lambda x: jax.lax.cond(x[0, 0] > 0, jnp.tanh, lambda y: y, x), bounds.ANY),
    (lambda x: jnp.tanh(x).astype(jnp.int32).astype(jnp.float32), bounds.ANY),
  ],
)
def test_ranges(program, expected):
  assert bounds.find(jax.make_jaxpr(program)(jnp.ones((3, 4))).jaxpr) == [expected]
