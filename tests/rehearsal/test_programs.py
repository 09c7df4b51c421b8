"""What the programs of a rehearsal compute and hold: FLOPs by closed forms, memory as the loop's programs have it."""

import contextlib

import jax
import numpy as np
import pytest

from dnt import loop
from dnt.data import pipeline
from dnt.parallel import compile as compile_lib
from dnt.parallel import mesh as mesh_lib
from dnt.training import datasets, experiment, initialize, open_options, precompile
from tests.rehearsal.conftest import MLP


def test_flops_of_a_dense_net_are_those_of_its_three_products(rehearse, plain):
  found = rehearse(plain, 'cpu:1')
  forward = sum(2 * 512 * inputs * outputs for inputs, outputs in MLP)
  first = 2 * 512 * 192 * 128  # nobody needs the gradient with respect to the images
  assert found.train.program.flops == 3 * forward - first
  assert found.evaluation.program.flops == forward / 512 * plain.eval.batch_size


@pytest.mark.thorough
def test_flops_of_a_convolutional_net_are_those_of_its_convolutions(rehearse, convolutional):
  found = rehearse(convolutional, 'cpu:1')
  stem = 2 * 16**2 * 9 * 3 * 16
  stages = 2 * 9 * (16**2 * 2 * 16 * 16 + 8**2 * (16 * 32 + 32 * 32) + 4**2 * (32 * 64 + 64 * 64))
  forward = stem + stages + 2 * 64 * 10
  assert found.train.program.flops == 16 * (3 * forward - stem)


@pytest.mark.thorough
def test_flops_that_remat_computes_again_do_not_count_as_utilization(rehearse, convolutional):
  before = rehearse(convolutional, 'cpu:1').train.program.flops
  convolutional.model.remat = True
  found = rehearse(convolutional, 'cpu:1')
  assert found.train.program.flops > 1.2 * before


@pytest.mark.thorough
def test_memory_is_that_of_the_programs_that_the_loop_runs(rehearse, tiny, tmp_path, monkeypatch):
  compiled, ahead = [], compile_lib.ahead

  def spy(*program, **words):
    compiled.append(ahead(*program, **words))
    return compiled[-1]

  monkeypatch.setattr(compile_lib, 'ahead', spy)
  monkeypatch.setenv('DNT_CPU_WITHOUT', 'background')
  tiny.telemetry.every = '2'
  loop.train(tiny, tmp_path / 'run')
  held = {each.memory_analysis().argument_size_in_bytes: each.memory_analysis() for each in compiled}
  found = rehearse(tiny, 'cpu:1')
  assert {each.program.name for each in found.steps} == {precompile.PLAIN, precompile.TELEMETRY, precompile.EVALUATION}
  for each in found.steps:
    memory = held[each.program.arguments]
    assert each.program.temporaries == memory.temp_size_in_bytes
    assert each.program.outputs == memory.output_size_in_bytes - memory.alias_size_in_bytes


def test_arguments_are_the_arrays_that_a_run_holds(rehearse, tiny):
  data = datasets.load(tiny, tiny.eval.splits)
  run = experiment.make(open_options.resolve(tiny, data), data.spec)
  mesh = mesh_lib.make_mesh(tiny.mesh)
  state = initialize.begin(run, mesh, run.init_variables())
  with contextlib.closing(pipeline.make_train_loader(run.config, data.train, mesh)) as loader:
    arrays = loader.arrays(0, 1)
  held = sum(leaf.nbytes for leaf in jax.tree.leaves((state, arrays, np.int32(1))))
  assert rehearse(tiny, 'cpu:1').train.program.arguments == held


def test_a_state_that_fsdp_splits_takes_less_memory(rehearse, plain):
  whole = rehearse(plain, 'cpu:4').train.program.arguments
  plain.mesh.fsdp = 4
  assert rehearse(plain, 'cpu:4').train.program.arguments < whole - 4 * 192 * 128


@pytest.mark.thorough
def test_a_run_on_cached_features_has_the_programs_that_the_loop_runs(rehearse, tiny, tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path))
  tiny.finetune.trainable, tiny.finetune.cache_dir = 'head', str(tmp_path / 'features')
  tiny.telemetry.every = '0'
  compiled, ahead = [], compile_lib.ahead

  def spy(*program, **words):
    compiled.append(ahead(*program, **words))
    return compiled[-1]

  monkeypatch.setattr(compile_lib, 'ahead', spy)
  loop.train(tiny, tmp_path / 'run')
  found = rehearse(tiny, 'cpu:1')
  held = {each.memory_analysis().argument_size_in_bytes for each in compiled}
  assert {each.program.arguments for each in found.steps} <= held
  assert found.train.program.flops == 2 * 2 * 16 * 16 * 10  # of the head, without the gradient of its input


@pytest.mark.thorough
def test_of_phases_that_start_at_one_step_the_last_is_rehearsed(rehearse, tiny):
  tiny.telemetry.every, tiny.finetune.trainable = '0', 'head'
  tiny.finetune.unfreeze = (('1', 'top:1'), ('1', 'all'))
  found = rehearse(tiny, 'cpu:1')
  assert [each.program.step for each in found.steps] == [0, 1, 1]  # two of training, the evaluation
  tiny.finetune.unfreeze = (('1', 'all'),)
  assert rehearse(tiny, 'cpu:1').steps[1].program.arguments == found.steps[1].program.arguments
