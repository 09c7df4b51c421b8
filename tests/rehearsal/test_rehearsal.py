"""What a rehearsal says is what a run has: FLOPs by closed forms, memory of the loop's programs, bytes by algebra."""

import contextlib

import jax
import numpy as np
import pytest

from dnt import loop
from dnt.data import pipeline
from dnt.parallel import compile as compile_lib
from dnt.parallel import mesh as mesh_lib
from dnt.rehearsal import hlo, rehearsal, report, roofline
from dnt.training import datasets, experiment, initialize, open_options, precompile

MLP = ((192, 128), (128, 128), (128, 10))
PARAMETERS = sum(inputs * outputs + outputs for inputs, outputs in MLP)


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


def test_the_images_of_every_split_to_evaluate_are_held(rehearse, tiny):
  tiny.data.synthetic_examples, tiny.eval.splits = 1000, ('test', 'train')
  tiny.checkpoint.best_metric = 'accuracy'
  both = rehearse(tiny, 'cpu:1')
  one = both._replace(made=both.made._replace(data=both.made.data._replace(evaluation={'test': both.made.data.train})))
  split = 1000 * (8 * 8 * 3 + 4)  # pixels and a label
  assert (one.images, both.images) == (split, 2 * split)
  assert {name: both.peaks[name] - one.peaks[name] for name in both.peaks} == {'training': split, 'evaluation': split}


def test_images_that_stream_are_held_one_batch_at_a_time(rehearse, tiny):
  tiny.data.synthetic_examples, tiny.data.placement, tiny.data.workers = 1000, 'stream', 0
  found = rehearse(tiny, 'cpu:1')
  program, train = found.evaluation.program, max(each.program.arguments for each in found.steps[:-1])
  assert found.images == 0
  batch = found.peaks['evaluation'] - train - program.outputs - program.temporaries
  assert batch == pytest.approx(16 * (8 * 8 * 3 + 4 + 1), abs=16)  # pixels, a label and a mask; the numbers of steps


def test_the_best_checkpoint_is_beside_the_last_state_where_only_the_end_evaluates(rehearse, tiny):
  tiny.eval.splits, tiny.checkpoint.best_metric, tiny.ema.decay = ('val',), 'accuracy', 0.9
  found = rehearse(tiny, 'cpu:1')
  assert set(found.made.data.evaluation) == {'val', 'test'}
  assert found.made.run.config.checkpoint.best_metric == 'val/accuracy'
  program, train = found.evaluation.program, max(each.program.arguments for each in found.steps[:-1])
  beside = found.peaks['evaluation'] - train - found.images - program.outputs - program.temporaries
  parameters = 4 * sum(row.parameters for row in found.made.run.table)
  assert beside == pytest.approx(2 * parameters, rel=0.2)  # the average too; and statistics of BatchNorm


def test_arguments_are_the_arrays_that_a_run_holds(rehearse, tiny):
  data = datasets.load(tiny, tiny.eval.splits)
  run = experiment.make(open_options.resolve(tiny, data), data.spec)
  mesh = mesh_lib.make_mesh(tiny.mesh)
  state = initialize.begin(run, mesh, run.init_variables())
  with contextlib.closing(pipeline.make_train_loader(run.config, data.train, mesh)) as loader:
    arrays = loader.arrays(0, 1)
  held = sum(leaf.nbytes for leaf in jax.tree.leaves((state, arrays, np.int32(1))))
  assert rehearse(tiny, 'cpu:1').train.program.arguments == held


def test_data_parallel_reduces_the_gradient_of_each_parameter_once(rehearse, plain):
  found = rehearse(plain, 'cpu:4')
  (line,) = [line for line in report.collectives(found.train) if line['purpose'] == hlo.GRADIENTS]
  assert (line['kind'], line['bytes']) == ('all-reduce', 4 * PARAMETERS)
  assert line['sent'] == pytest.approx(2 * 3 / 4 * 4 * PARAMETERS)
  others = sum(line['bytes'] for line in report.collectives(found.train) if line['purpose'] != hlo.GRADIENTS)
  assert others <= 16  # the loss and the number of right predictions


def test_one_device_communicates_nothing(rehearse, plain):
  assert rehearse(plain, 'cpu:1').train.costs.collectives == ()


def test_fsdp_gathers_each_split_parameter_whole(rehearse, plain):
  plain.mesh.fsdp = 4
  found = rehearse(plain, 'cpu:4')
  split = [inputs * outputs for inputs, outputs in MLP if inputs * outputs >= mesh_lib.SMALLEST_SPLIT_LEAF]
  gathered = [line for line in report.collectives(found.train) if line['purpose'] == hlo.PARAMETERS]
  assert [line['kind'] for line in gathered] == ['all-gather']
  assert gathered[0]['bytes'] == 4 * sum(split)
  assert gathered[0]['sent'] == pytest.approx(3 / 4 * 4 * sum(split))
  reduced = [line for line in report.collectives(found.train) if line['purpose'] == hlo.GRADIENTS]
  assert sum(line['bytes'] for line in reduced) == 4 * PARAMETERS


def test_a_state_that_fsdp_splits_takes_less_memory(rehearse, plain):
  whole = rehearse(plain, 'cpu:4').train.program.arguments
  plain.mesh.fsdp = 4
  assert rehearse(plain, 'cpu:4').train.program.arguments < whole - 4 * 192 * 128


@pytest.mark.thorough
def test_statistics_of_batch_norm_are_told_from_gradients(rehearse, convolutional):
  found = rehearse(convolutional, 'cpu:4')
  lines = {line['purpose']: line for line in report.collectives(found.train)}
  channels = 16 + 2 * 16 + 2 * 32 + 2 * 64  # of the norms
  assert lines[hlo.STATISTICS]['bytes'] == 4 * 4 * channels  # mean and variance, and their gradients
  parameters = sum(row.parameters for row in found.made.run.table)
  assert lines[hlo.GRADIENTS]['bytes'] == 4 * (parameters - 2 * channels)  # scale and bias have those of the statistics
  convolutional.model.norm, convolutional.model.norm_groups = 'group_norm', 4
  lines = {line['purpose']: line for line in report.collectives(rehearse(convolutional, 'cpu:4').train)}
  assert lines[hlo.GRADIENTS]['bytes'] == 4 * parameters
  assert hlo.STATISTICS not in lines


@pytest.mark.thorough
def test_loops_count_as_often_as_they_run(rehearse, convolutional):
  convolutional.model.norm, convolutional.model.norm_groups, convolutional.model.depth = 'group_norm', 4, 20
  unrolled = rehearse(convolutional, 'cpu:4')
  convolutional.model.scan = True
  scanned = rehearse(convolutional, 'cpu:4')
  assert scanned.train.program.flops == unrolled.train.program.flops

  def reduced(found):
    return sum(line['bytes'] for line in report.collectives(found.train) if line['purpose'] == hlo.GRADIENTS)

  assert reduced(scanned) == reduced(unrolled) == 4 * sum(row.parameters for row in unrolled.made.run.table)


def test_a_batch_that_the_chips_do_not_divide_is_a_problem_of_that_target_alone(rehearse, tiny):
  found = rehearse(tiny, 'cpu:3')
  assert not found.fits and 'batch_size' in found.problem
  assert report.text([found])


def test_a_program_that_is_too_large_does_not_fit(rehearse, tiny, monkeypatch):
  found = rehearse(tiny, 'cpu:1')
  assert found.fits
  monkeypatch.setattr(rehearsal.capacity, 'host', lambda: 1000)
  assert not found.fits


@pytest.mark.parametrize('every', ['1', '2'])
def test_the_step_of_a_run_is_one_without_telemetry_unless_every_step_records_it(rehearse, tiny, every):
  tiny.telemetry.every = every
  name = {'1': precompile.TELEMETRY, '2': precompile.PLAIN}[every]
  assert rehearse(tiny, 'cpu:1').train.program.name == name


def test_each_phase_of_a_run_takes_the_time_and_the_flops_of_its_own_step(rehearse, tiny):
  tiny.telemetry.every = '0'
  tiny.finetune.trainable, tiny.finetune.unfreeze = 'head', (('4', 'all'),)  # 6 steps
  found = rehearse(tiny, 'cpu:1')
  seconds = {(precompile.PLAIN, 0): 1.0, (precompile.PLAIN, 4): 10.0, (precompile.EVALUATION, 4): 0.25}
  steps = [
    each._replace(roofline=roofline.Roofline(seconds[each.program.name, each.program.step], 0.0, 0.0, 0.0))
    for each in found.steps
  ]
  found = found._replace(steps=tuple(steps))
  assert found.run_seconds == 4 * 1 + 2 * 10 + 2 * 4 * 0.25  # two evaluations of 64 images, 16 at a time
  assert found.step_seconds == 10 and found.utilization == 1
  assert found._replace(steps=tuple(steps[:1]), problem='of the second phase').run_seconds is None


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


def test_of_phases_that_start_at_one_step_the_last_is_rehearsed(rehearse, tiny):
  tiny.telemetry.every, tiny.finetune.trainable = '0', 'head'
  tiny.finetune.unfreeze = (('1', 'top:1'), ('1', 'all'))
  found = rehearse(tiny, 'cpu:1')
  assert [each.program.step for each in found.steps] == [0, 1, 1]  # two of training, the evaluation
  tiny.finetune.unfreeze = (('1', 'all'),)
  assert rehearse(tiny, 'cpu:1').steps[1].program.arguments == found.steps[1].program.arguments


@pytest.mark.parametrize(
  'changes',
  [
    {'optim.learning_rate': 'auto'},
    {'ema.decay': 0.9},
    {'train.steps_per_dispatch': 1},
    {'data.placement': 'stream', 'data.workers': 0},
    {'finetune.trainable': 'head', 'finetune.unfreeze': (('3', 'all'),)},
  ],
)
def test_other_runs_are_rehearsed_too(rehearse, tiny, changes):
  from dnt.config import overrides

  found = rehearse(overrides.override(tiny, changes, 'test'), 'cpu:2')
  assert found.fits, found.problem
  assert len(found.steps) == 2 if 'finetune.unfreeze' not in changes else 3
