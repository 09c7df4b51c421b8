import functools
import json
import os
import pathlib
import re
import subprocess
import sys
import time
import types
import warnings

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dnt import errors, files
from dnt.models import conv, norms
from dnt.parallel import capacity, multihost
from dnt.parallel import compile as compile_lib
from dnt.parallel.cpu import allocator, options

ROOT = pathlib.Path(__file__).parents[2]
CACHE = """
import pathlib, sys, jax
from dnt.parallel import compile as compile_lib
compile_lib.enable_cache(pathlib.Path(sys.argv[1]))
compile_lib.jit(lambda x: x + 1)(1.0)
"""

CONVOLUTIONS = """
import json, jax, jax.numpy as jnp
from dnt.models import conv
from dnt.parallel import compile as compile_lib
compile_lib.enable_cache()
def loss(kernels, x):
  for kernel, convolve in zip(kernels, (conv.conv2d, lambda x, k: jax.lax.conv_general_dilated(
      x, k, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC')))):
    x = jax.nn.relu(convolve(x, kernel))
  return jnp.mean(x @ jnp.ones((16, 4)))
def step(kernels, x):
  return jax.tree.map(lambda k, g: k - g, kernels, jax.grad(loss)(kernels, x))
kernels = [jnp.full((3, 3, 8, 16), 0.1), jnp.full((3, 3, 16, 16), 0.1)]
found = compile_lib.jit(step)(kernels, jnp.ones((4, 16, 16, 8)))
print(json.dumps([float(jnp.sum(leaf)) for leaf in found]))
"""


def test_programs_get_the_options_of_the_devices_they_run_on(monkeypatch):
  monkeypatch.setattr(options, 'find', lambda: {'xla_cpu_of': 'cpu'})

  def mesh(platform):
    return types.SimpleNamespace(devices=np.array([[types.SimpleNamespace(platform=platform)]]))

  assert compile_lib.compiler_options(mesh('cpu')) == {'xla_cpu_of': 'cpu'}
  assert compile_lib.compiler_options(mesh('tpu')) is None
  if jax.default_backend() == 'cpu':
    assert compile_lib.compiler_options() == {'xla_cpu_of': 'cpu'}
  monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
  assert compile_lib.compiler_options() is None
  assert compile_lib.compiler_options(mesh('cpu')) == {'xla_cpu_of': 'cpu'}


def test_barriers_are_kept_where_the_options_ask_for_it():
  program = compile_lib.jit(lambda x: jax.lax.optimization_barrier(x * 2) + 1, donate_argnums=0)
  compiled = program.lower(jnp.ones(64)).compile()
  if 'xla_disable_hlo_passes' in (compile_lib.compiler_options() or {}):
    assert 'opt-barrier' in compiled.as_text()
  np.testing.assert_array_equal(compiled(jnp.ones(64)), 3)


@pytest.mark.usefixtures('optimized')
@pytest.mark.thorough
@pytest.mark.skipif(jax.__version__ not in options.OPTIONS, reason='no options for this jax version')
def test_programs_compiled_with_the_options_survive_the_cache(tmp_path):
  """XLA has options under which it crashes while it writes a convolution to the cache, so processes try it."""
  environment = {**os.environ, 'JAX_COMPILATION_CACHE_DIR': str(tmp_path)}
  environment.pop('XLA_FLAGS')  # as users run it, with one device

  def run():
    done = subprocess.run([sys.executable, '-c', CONVOLUTIONS], cwd=ROOT, env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    return json.loads(done.stdout)

  written = run()
  names = {path.name for path in tmp_path.iterdir() if path.name.startswith('jit_step')}
  assert names
  assert run() == written, 'what is read back computes the same'
  assert {path.name for path in tmp_path.iterdir() if path.name.startswith('jit_step')} == names, 'compiled once'


class Net(nn.Module):
  """Two strided convolutions, so that a step has every kind of backward convolution."""

  @nn.compact
  def __call__(self, x, train):
    for index, stride in enumerate((1, 2)):
      x = conv.Conv(4, (3, 3), strides=(stride, stride), use_bias=False, name=f'conv{index}')(x)
      x = nn.relu(norms.Norm('batch_norm', name=f'norm{index}')(x, train))
    return nn.Dense(3)(jnp.mean(x, (1, 2)))


@pytest.mark.thorough
@pytest.mark.usefixtures('optimized')
def test_a_loop_of_train_steps_is_bit_identical_to_single_steps():
  rng = np.random.default_rng(0)
  images, labels = rng.normal(size=(6, 4, 8, 8, 3)).astype(np.float32), rng.integers(0, 3, (6, 4))
  model, optimizer = Net(), optax.chain(optax.add_decayed_weights(1e-3), optax.sgd(0.1, momentum=0.9))
  variables = jax.jit(functools.partial(model.init, train=False))(jax.random.key(0), images[0])

  def train_step(index, state):
    params, stats, optimizer_state = state

    def loss(params):
      logits, updates = model.apply(
        {'params': params, 'batch_stats': stats}, images_[index], train=True, mutable=['batch_stats']
      )
      return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels_[index])), updates['batch_stats']

    gradients, stats = jax.grad(loss, has_aux=True)(params)
    updates, optimizer_state = optimizer.update(gradients, optimizer_state, params)
    return optax.apply_updates(params, updates), stats, optimizer_state

  images_, labels_ = jnp.asarray(images), jnp.asarray(labels)
  single = compile_lib.jit(train_step)
  looped = compile_lib.jit(lambda count, state: jax.lax.fori_loop(0, count, train_step, state))
  start = (variables['params'], variables['batch_stats'], optimizer.init(variables['params']))
  state = start
  for index in range(6):
    state = single(index, state)
  for a, b in zip(jax.tree.leaves(looped(6, start)), jax.tree.leaves(state), strict=True):
    np.testing.assert_array_equal(a, b)
  assert not np.array_equal(state[0]['conv0']['kernel'], start[0]['conv0']['kernel'])


@pytest.mark.parametrize('own', [False, True])
def test_programs_are_kept_in_the_directory_or_where_the_environment_says(tmp_path, own):
  environment = {name: value for name, value in os.environ.items() if name != 'JAX_COMPILATION_CACHE_DIR'}
  if own:
    environment['JAX_COMPILATION_CACHE_DIR'] = str(tmp_path / 'own')
  command = [sys.executable, '-c', CACHE, str(tmp_path / 'runs' / 'cache')]
  subprocess.run(command, cwd=ROOT, env=environment, check=True)
  assert (tmp_path / 'own').exists() == own
  assert (tmp_path / 'runs').exists() == (not own)
  kept = tmp_path / 'own' if own else tmp_path / 'runs' / 'cache'
  assert list(kept.iterdir())


@pytest.mark.parametrize('given', ['own', 'environment', 'no home'])
def test_a_cache_that_cannot_be_made_is_one_line(tmp_path, monkeypatch, console, given):
  (tmp_path / 'file').write_text('')
  folder, cache = tmp_path / 'file' / 'cache', jax.config.jax_compilation_cache_dir
  if given == 'no home':
    monkeypatch.setattr(files, 'cache_folder', lambda name: None)
  try:
    jax.config.update('jax_compilation_cache_dir', str(folder) if given == 'environment' else None)
    with warnings.catch_warnings():
      compile_lib.enable_cache(folder if given == 'own' else None)
    assert jax.config.jax_compilation_cache_dir is None
  finally:
    jax.config.update('jax_compilation_cache_dir', cache)
  output = console.readouterr().out
  assert output.count('\n') == 1 and ('home folder' if given == 'no home' else str(folder)) in output


@pytest.mark.thorough
def test_a_program_that_was_cut_off_in_the_cache_is_written_anew(tmp_path):
  environment = {name: value for name, value in os.environ.items() if name != 'JAX_COMPILATION_CACHE_DIR'}

  def run():
    done = subprocess.run(
      [sys.executable, '-c', CACHE, tmp_path], cwd=ROOT, env=environment, check=True, capture_output=True
    )
    assert not done.stderr, done.stderr.decode()
    return {path: path.read_bytes() for path in tmp_path.glob('*-cache')}

  whole = run()
  for path, content in whole.items():
    path.write_bytes(content[: len(content) // 2])
    os.utime(path, 2 * (time.time() - 3600,))
  anew = run()
  assert anew.keys() == whole.keys() != set()
  assert all(len(content) > len(whole[path]) // 2 for path, content in anew.items())


def test_of_programs_that_were_cut_off_in_the_cache_those_being_written_stay(tmp_path, console, recwarn):
  old, new, other = (tmp_path / f'jit_{name}-cache' for name in ('f-1', 'f-2', 'g-1'))
  for path, age in ((old, 3600), (new, 0), (other, 3600)):
    path.write_bytes(b'')
    os.utime(path, 2 * (time.time() - age,))
  given = jax.config.jax_compilation_cache_dir
  try:
    jax.config.update('jax_compilation_cache_dir', str(tmp_path))
    with warnings.catch_warnings():
      compile_lib.enable_cache()
      for error in ('XlaRuntimeError: INTERNAL', 'error: Error -5', 'ZstdError: ends'):
        warnings.warn(f"Error reading persistent compilation cache entry for 'jit_f': {error}")
        assert old.exists() == error.startswith('Xla')
      warnings.warn('another')
  finally:
    jax.config.update('jax_compilation_cache_dir', given)
  assert new.exists() and other.exists()
  output = console.readouterr().out
  assert output.count('\n') == 1 and str(tmp_path) in output
  said = [str(each.message) for each in recwarn]  # also what earlier tests have left behind
  assert 'another' in said and not any('persistent compilation' in text for text in said)


@pytest.mark.parametrize(
  ('others', 'backend', 'kept'),
  [('shared', 'gpu', True), ('own', 'gpu', False), (None, 'gpu', False), ('own', 'cpu', True)],
)
def test_processes_on_gpus_keep_a_cache_that_they_share(tmp_path, monkeypatch, console, others, backend, kept):
  """Another process sees the files of this one in its cache, or has a cache of its own, or none."""
  monkeypatch.setattr(multihost, 'is_single', lambda: False)
  monkeypatch.setattr(multihost, 'barrier', lambda name: None)
  monkeypatch.setattr(jax, 'default_backend', lambda: backend)

  def gather(value):
    if isinstance(value, bool):
      assert value and not list(tmp_path.iterdir())
      return [value, others == 'shared']
    assert jax.config.jax_compilation_cache_dir is None, 'it compiles nothing that is kept'
    return [value, others and str(tmp_path)]

  monkeypatch.setattr(multihost, 'gather_from_all', gather)
  cache = jax.config.jax_compilation_cache_dir
  try:
    jax.config.update('jax_compilation_cache_dir', str(tmp_path))
    compile_lib.keep_cache_if_shared()
    assert jax.config.jax_compilation_cache_dir == (str(tmp_path) if kept else None)
  finally:
    jax.config.update('jax_compilation_cache_dir', cache)
  assert console.readouterr().out.count(str(tmp_path)) == (not kept)


def test_a_program_run_eagerly_gives_the_same_and_compiles_no_constants(monkeypatch):
  def fn(x, key):
    ones = jnp.ones((3, 5))
    return {
      'zeros': jnp.zeros((7,), jnp.int32),
      'ones': ones,
      'scaled': ones * x,
      'drawn': jax.random.normal(key, (2,)),
      'x': x,
    }

  arguments = (jnp.float32(3.0), jax.random.key(0))
  expected = fn(*arguments)
  found = compile_lib.eagerly(fn)(*arguments)
  assert found.keys() == expected.keys()
  for name, value in expected.items():
    assert (found[name].shape, found[name].dtype) == (value.shape, value.dtype)
    np.testing.assert_array_equal(found[name], value)
  assert isinstance(found['zeros'], np.ndarray), 'filled on the host'


def test_without_devices_of_the_host_jax_keeps_its_default(monkeypatch):
  def local_devices(backend):
    raise RuntimeError(f"Backend '{backend}' is not in the list of known backends")

  monkeypatch.setattr(jax, 'local_devices', local_devices)
  assert compile_lib.eagerly(lambda x: 2 * x)(jnp.float32(3.0)) == 6


def test_the_allocator_is_told_of_temporary_buffers(monkeypatch):
  told = []
  monkeypatch.setattr(allocator, 'release_large', told.append)
  program = compile_lib.jit(lambda x: jnp.sort(x @ x.T, 1).sum(1))
  program = compile_lib.ahead(program, jax.ShapeDtypeStruct((1024, 8), jnp.float32))
  assert told == [4 * 1024**2], 'the product'
  x = np.ones((1024, 8), np.float32)
  np.testing.assert_array_equal(program(x), np.full(1024, 8 * 1024))


def test_a_jax_that_does_not_compile_is_refused():
  program = compile_lib.jit(jnp.sin)
  with jax.disable_jit(), pytest.raises(errors.InputError, match='jax_disable_jit is set .*unset it'):
    compile_lib.ahead(program, 1.0)


def test_types_of_64_bits_are_refused():
  with jax.enable_x64(True), pytest.raises(errors.InputError, match='jax_enable_x64 is set .*unset it'):
    compile_lib.ahead(compile_lib.jit(jnp.sin), 1.0)


def test_a_program_beyond_the_memory_of_the_device_is_refused(monkeypatch):
  jitted = compile_lib.jit(lambda x: jnp.sort(x @ x.T, 1).sum(1))
  shape = jax.ShapeDtypeStruct((1024, 8), jnp.float32)
  needed = 4 * (1024**2 + 1024 * 8 + 1024)  # the product, the argument and the result
  monkeypatch.setattr(capacity, 'device', lambda: needed)
  compile_lib.ahead(jitted, shape)
  monkeypatch.setattr(capacity, 'device', lambda: needed - 1)
  with pytest.raises(errors.InputError, match='config.train.batch_size'):
    compile_lib.ahead(jitted, shape)
  with pytest.raises(errors.InputError, match=r'the step \(.* arguments .* temporary .*lower the depth'):
    compile_lib.ahead(jitted, shape, what='the step', remedy='the depth')


@pytest.mark.parametrize(
  'error', ['RESOURCE_EXHAUSTED: Ran out of memory: 20G of 16G hbm.\nLargest: ...', 'INTERNAL: x']
)
def test_a_program_that_xla_refuses_for_its_memory_is_refused_alike(error):
  def fail():
    raise jax.errors.JaxRuntimeError(error)

  jitted = types.SimpleNamespace(lower=lambda: types.SimpleNamespace(compile=fail))
  with pytest.raises((errors.InputError, jax.errors.JaxRuntimeError)) as refused:
    compile_lib.ahead(jitted, what='the step', remedy='the depth')
  assert isinstance(refused.value, errors.InputError) == ('hbm' in error)
  if 'hbm' in error:
    assert re.match(r'the step .*lower the depth .*20G of 16G hbm\.\)$', str(refused.value))
