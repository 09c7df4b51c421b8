"""What a rehearsal says is what a run has: the memory of its peaks, and the bytes of its collectives by algebra."""

import pytest

from dnt.parallel import mesh as mesh_lib
from dnt.rehearsal import hlo, rehearsal, report, roofline
from dnt.training import precompile
from tests.rehearsal.conftest import MLP

PARAMETERS = sum(inputs * outputs + outputs for inputs, outputs in MLP)


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
  tiny.eval.splits, tiny.eval.batch_size = ('test', 'train'), 12
  found = rehearse(tiny, 'cpu:1')
  seconds = {(precompile.PLAIN, 0): 1.0, (precompile.PLAIN, 4): 10.0, (precompile.EVALUATION, 4): 0.25}
  steps = [
    each._replace(roofline=roofline.Roofline(seconds[each.program.name, each.program.step], 0.0, 0.0, 0.0))
    for each in found.steps
  ]
  found = found._replace(steps=tuple(steps))
  assert found.run_seconds == 4 * 1 + 2 * 10 + 2 * (6 + 6) * 0.25  # two evaluations of 64 images twice, 12 at a time
  assert found.step_seconds == 10 and found.utilization == 1
  assert found._replace(steps=tuple(steps[:1]), problem='of the second phase').run_seconds is None


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
