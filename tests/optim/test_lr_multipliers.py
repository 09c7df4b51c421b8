"""Factors on the learning rate, and the pull towards where training began."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dnt import config as schema
from dnt import errors, trees
from dnt.models import depth, freeze
from dnt.optim import chain, lr_multipliers, rows


def make_config(**options):
  config = schema.default()
  config.optim.update({'learning_rate': 0.5, 'momentum': 0.0, 'weight_decay': 0.0})
  for key, value in options.items():
    section, _, name = key.partition('__')
    config[section][name] = value
  return config


def update(config, entries, params, gradient):
  optimizer = chain.make(config, optax.constant_schedule(config.optim.learning_rate), rows.Leaves.of(params, entries))
  found, _ = optimizer.update(gradient, optimizer.init(params), params)
  return trees.flatten(found)


def test_factors_in_closed_form(network):
  entries = network.unrolled
  config = make_config(finetune__layer_decay=0.5, finetune__head_lr_mult=10.0).finetune
  head = len(entries) - 1
  found = lr_multipliers.factors(config, entries, range(len(entries)))
  np.testing.assert_allclose(found, [10.0 if i == head else 0.5 ** (head - i) for i in range(len(entries))])


def test_of_several_patterns_the_first_counts(network):
  entries = network.unrolled
  config = make_config(finetune__rates=((entries[1].name, 3.0), ('.*', 0.1))).finetune
  found = lr_multipliers.factors(config, entries, range(len(entries)))
  np.testing.assert_allclose(found, [3.0 if i == 1 else 0.1 for i in range(len(entries))])


@pytest.mark.parametrize('layout', ['unrolled', 'scanned'])
def test_a_pattern_for_nothing_is_refused(network, layout):
  params = network.stack(network.tree(0)) if layout == 'scanned' else network.tree(0)
  entries = getattr(network, layout)
  leaves = rows.Leaves.of(params, entries)
  lr_multipliers.check(make_config(finetune__rates=((entries[1].name, 3.0),)).finetune, leaves, freeze.ALL)
  config = make_config(finetune__rates=((entries[1].name, 3.0), ('stage9', 3.0))).finetune
  with pytest.raises(errors.InputError, match=f"'stage9' .*that trains: {entries[0].name}, {entries[1].name}"):
    lr_multipliers.check(config, leaves, freeze.ALL)


@pytest.mark.parametrize('layout', ['unrolled', 'scanned'])
def test_factors_of_what_never_trains_are_refused(network, layout):
  params = network.stack(network.tree(0)) if layout == 'scanned' else network.tree(0)
  leaves = rows.Leaves.of(params, getattr(network, layout))
  last = leaves.entries[-1].name
  head, below = (frozenset(path for path in leaves.shapes if path.startswith(f'{last}/') == there) for there in (1, 0))
  ends = {end: freeze.Partition(frozenset({'frozen'}), paths) for end, paths in (('head', head), ('below', below))}
  lr_multipliers.check(make_config(finetune__head_lr_mult=3.0).finetune, leaves, ends['head'])
  with pytest.raises(errors.InputError, match=f'head_lr_mult=3.0 .*{last}, which never trains'):
    lr_multipliers.check(make_config(finetune__head_lr_mult=3.0).finetune, leaves, ends['below'])
  decay = make_config(finetune__layer_decay=0.5, finetune__trainable='(head)').finetune
  lr_multipliers.check(decay, leaves, ends['below'])
  with pytest.raises(errors.InputError, match=f'layer_decay=0.5 .* below {last}, and nothing else trains'):
    lr_multipliers.check(decay, leaves, ends['head'])
  decay.trainable = 'head'  # where the schema knows that it has no effect
  lr_multipliers.check(decay, leaves, ends['head'])


class WithDropouts(nn.Module):
  @nn.compact
  def __call__(self, x, train):
    x = nn.Dense(4, name='first')(x)
    x = nn.Dropout(0.1, deterministic=not train, name='dropout1')(x)
    x = nn.Dropout(0.1, deterministic=not train, name='dropout2')(nn.Dense(4, name='second')(x))
    return nn.LayerNorm(use_bias=False, use_scale=False, name='after')(nn.Dense(2, name='head')(x))


def test_entries_without_parameters_do_not_count_as_depth():
  trace = depth.trace(WithDropouts(), (3,))
  config = make_config(finetune__layer_decay=0.5, finetune__head_lr_mult=3.0, finetune__rates=(('first', 0.1),))
  assert [entry.name for entry in trace.entries] == ['first', 'dropout1', 'second', 'dropout2', 'head', 'after']
  params = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), trace.variables['params'])
  found = update(config, trace.entries, params, params)
  for name, factor in {'first': 0.1 * 0.25, 'second': 0.5, 'head': 3.0}.items():
    np.testing.assert_allclose(found[f'{name}/kernel'], -0.5 * factor, rtol=1e-6)
  config.finetune.rates = (('dropout1', 0.1),)
  with pytest.raises(errors.InputError, match="'dropout1' .*that trains: first, second, head$"):
    lr_multipliers.check(config.finetune, rows.Leaves.of(params, trace.entries), freeze.ALL)


@pytest.mark.parametrize('layout', ['unrolled', 'scanned'])
def test_updates_are_scaled_after_clipping_in_both_layouts(network, layout):
  entries = getattr(network, layout)
  given = (network.tree(seed) for seed in (0, 1))
  given = map(network.stack, given) if layout == 'scanned' else given
  params, gradient = (jax.tree.map(jnp.asarray, tree) for tree in given)
  clip = {'clip__name': 'global_norm', 'clip__threshold': 0.1}
  plain = update(make_config(**clip), entries, params, gradient)
  scaled = update(make_config(finetune__layer_decay=0.5, **clip), entries, params, gradient)
  head = len(entries) - 1
  for path, leaf in scaled.items():
    places = [i for i, e in enumerate(entries) if path == e.path or path.startswith(f'{e.path}/')]
    factor = np.array([0.5 ** (head - i) for i in places], np.float32)
    factor = factor.reshape(-1, *(1,) * (leaf.ndim - 1)) if len(places) > 1 else factor[0]
    np.testing.assert_allclose(leaf, plain[path] * factor, rtol=1e-6)


@pytest.mark.parametrize('reinit', [(), ('stem',)])
def test_l2_sp_pulls_towards_the_start_and_what_is_new_towards_zero(network, reinit):
  entries = network.unrolled
  start, now, gradient = (jax.tree.map(jnp.asarray, network.tree(seed)) for seed in (0, 1, 2))
  config = make_config(finetune__l2_sp=0.3, optim__weight_decay=0.1, finetune__reinit=reinit)
  new = (*reinit, entries[-1].name)
  optimizer = chain.make(config, optax.constant_schedule(0.5), rows.Leaves.of(start, entries))
  found, _ = optimizer.update(gradient, optimizer.init(start), now)
  start, now, gradient, found = map(trees.flatten, (start, now, gradient, found))
  for path in found:
    expected = gradient[path]
    if path.endswith('kernel'):
      pull = 0.1 * now[path] if path.startswith(new) else 0.3 * (now[path] - start[path])
      expected = expected + pull
    np.testing.assert_allclose(found[path], -0.5 * expected, rtol=1e-5, atol=1e-6)
