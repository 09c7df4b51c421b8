"""What is said of runs that have ended."""

import json

import pytest

from dnt import errors, loop
from dnt.diagnostics import ended
from dnt.diagnostics.verdicts import Kind
from dnt.training import record

CONFIG = {'model': {'num_classes': 10}, 'train': {'steps': 1000}, 'data': {'train_split': 'train'}}


def lines(losses, accuracies=None, steps=range(10, 10_000, 10), **others):
  """A record: a line of training every ten steps, and one of an evaluation beside it if there are others."""
  accuracies = accuracies or [0.9] * len(losses)
  record_ = []
  for index, (loss, accuracy) in enumerate(zip(losses, accuracies, strict=True)):
    step = {'step': steps[index]}
    record_.append(step | {'train/loss': loss, 'train/accuracy': accuracy, 'train/learning_rate': 0.1})
    if others:
      record_.append(step | {name.replace('__', '/'): values[index] for name, values in others.items()})
  return record_


FALLS = [2.3 * 0.8**index for index in range(20)]


def rows(*norms):
  """Telemetry of three entries, at each line the gradient norms at their outputs."""
  names = [f'telemetry/{entry}/output_gradient_norm' for entry in ('stem', 'block', 'head')]
  return [dict(zip(names, each, strict=True)) for each in norms]


def test_a_run_that_learns():
  found = ended.judge(CONFIG, lines(FALLS), [100, 200])
  assert (found.state, found.kind, found.step) == ('healthy', 'trainable', None)
  assert any('200 of 1000 steps' in line for line in found.lines)


def test_a_loss_that_stops_being_finite():
  found = ended.judge(CONFIG, lines([*FALLS[:10], 3.0, 50.0, 1e5, None]), [50, 100, 130])
  assert (found.state, found.kind) == ('sick', 'step too large')
  assert found.step == 100, 'where the loss was smallest last'
  assert any('not finite from step 140' in line for line in found.lines)
  assert any('checkpoint of step 100 is from before' in line for line in found.lines)


def test_a_loss_that_rises_and_stays():
  found = ended.judge(CONFIG, lines([*FALLS[:10], *[60.0] * 10], [0.9] * 10 + [0.1] * 10), [])
  assert (found.state, found.kind, found.step) == ('sick', 'step too large', 100)


def test_a_loss_that_does_not_move():
  found = ended.judge(CONFIG, lines([2.3] * 20, [0.1] * 20), [])
  assert (found.state, found.kind) == ('sick', Kind.STUCK)


@pytest.mark.parametrize(
  ('losses', 'accuracies', 'steps', 'stuck'),
  [
    ([2.3, 2.28, 2.1, 1.8, 1.4], [0.10, 0.12, 0.18, 0.32, 0.50], range(50, 300, 50), False),
    ([2.3, 2.2, 1.9, 1.6], [0.1, 0.12, 0.15, 0.22], range(50, 250, 50), False),
    ([2.3, 2.3, 2.2, 2.1], [0.1, 0.12, 0.15, 0.22], range(50, 250, 50), True),
    ([1.6], [0.22], [50], False),
    ([9.0, 2.2], [0.1, 0.1], [50, 150], True),
    ([2.3, 2.2, 1.9, 1.6], [0.1, 0.12, 0.15, 0.22], range(250, 1250, 250), True),
  ],
  ids=[
    'the last steps are what counts',
    'the loss falls, so early',
    'it hardly falls',
    'one line, which is below guessing',
    'to guessing is not enough',
    'it is long enough to have learnt',
  ],
)
def test_a_run_is_stuck_by_its_last_steps(losses, accuracies, steps, stuck):
  found = ended.judge(CONFIG, lines(losses, accuracies, steps), [])
  assert (found.state, found.kind) == (('sick', Kind.STUCK) if stuck else ('healthy', 'trainable'))


def test_one_line_of_few_steps_shows_nothing():
  found = ended.judge(CONFIG, lines([2.3], [0.1], [50]), [50])
  assert (found.state, found.kind) == ('doubtful', 'trainable')
  assert any('too early to say' in line for line in found.lines)
  assert ended.judge(CONFIG, lines([2.3], [0.1], [500]), []).kind == Kind.STUCK, 'it had the steps to learn'


def test_the_first_lines_of_a_run_are_no_window():
  losses, accuracies = [1.4] + [2.3] * 400, [0.5] + [0.1] * 400
  found = ended.judge(CONFIG, lines(losses, accuracies, range(1, 402)), [1])
  assert found.kind == Kind.STUCK and not any('from before' in line for line in found.lines)
  rises = [1.0] + [0.5] * 200 + [0.7] * 200
  assert ended.judge(TWO, lines([0.6] * 401, rises, range(1, 402)), []).state == 'healthy'


def test_few_steps_at_guessing_are_too_early_in_many_lines_too():
  found = ended.judge(CONFIG, lines([2.3, 2.29], [0.1, 0.1]), [])
  assert (found.state, found.kind) == ('doubtful', 'trainable')
  found = ended.judge(CONFIG, lines([2.3], [0.1], val__loss=[None]), [])
  assert found.state == 'sick' and not any('too early' in line for line in found.lines)


def test_no_checkpoint_is_from_before_a_start_that_was_stuck(tmp_path):
  found = ended.judge(CONFIG, lines([2.3] * 20, [0.1] * 20), [10, 100])
  assert found.step == 0 and ended.text(tmp_path, found).startswith(f'{tmp_path}: sick; stuck, from the start\n')
  assert not any('from before' in line for line in found.lines)
  faint = [{'step': 10 * (index + 1)} | each for index, each in enumerate(rows(*[(1e-9, 1e-3, 1.0)] * 20))]
  found = ended.judge(CONFIG, lines([2.3] * 20, [0.1] * 20) + faint, [10, 100])
  assert (found.kind, found.step) == (Kind.VANISHING, 10)
  assert not any('from before' in line for line in found.lines)


@pytest.mark.parametrize('signals', [[], rows(*[(1e-9, 1e-3, 1.0)] * 7)], ids=['alone', 'vanishing all along'])
def test_a_run_that_falls_back_to_guessing_had_too_large_steps(signals):
  losses, accuracies = [2.0, 1.0, 0.5, 0.2, 0.1, 2.3, 2.3], [0.3, 0.6, 0.8, 0.9, 0.95, 0.1, 0.1]
  val = {'val__loss': [2.0, 1.0, 0.6, 0.5, 0.4, 2.3, 2.3]}
  record_ = lines(losses, accuracies, range(100, 800, 100), **val)
  record_ += [{'step': 100 * (index + 1)} | each for index, each in enumerate(signals)]
  found = ended.judge(CONFIG, record_, [100, 500, 700])
  assert (found.kind, found.step) == (Kind.LARGE_STEP, 500)
  assert any('the checkpoint of step 500 is from before' in line for line in found.lines)
  assert any('config.optim.learning_rate' in line for line in found.lines)
  assert any('val/loss rises from 0.4 at step 500' in line for line in found.lines)
  assert not any('overfits' in line for line in found.lines), 'the loss of the batches rises too'
  assert any(line.startswith('step 100: vanishing') for line in found.lines) == bool(signals)


def test_a_run_that_loses_half_of_what_it_had_learnt_is_doubtful():
  found = ended.judge(CONFIG, lines([2.0, 0.5, 0.1, 1.9, 1.9], [0.3, 0.8, 0.96, 0.35, 0.35], range(100, 600, 100)), [])
  assert (found.state, found.kind) == ('doubtful', 'trainable')
  assert 'the accuracy of the batches falls from 96 % at step 300 to 35 %' in found.lines
  noisy = [0.3, 0.8, 0.96, 0.7, 0.75]
  assert ended.judge(CONFIG, lines([2.0, 0.5, 0.1, 0.3, 0.2], noisy, range(100, 600, 100)), []).state == 'healthy'


SHARES = ('accuracy', 'balanced_accuracy')
TWO = CONFIG | {'model': {'num_classes': 2}}
STEPS = range(50, 450, 50)
TO_GUESSING = [0.69, 0.5, 0.4, 0.35, 0.33, 0.326, 0.325, 0.325]  # of 90 % of the one class: 0.325


def unequal(balanced, auroc, accuracies=(0.9,) * 8, losses=TO_GUESSING, steps=STEPS, accuracy=0.9):
  """What is said of a run on two classes by its last evaluation."""
  values = {'val__balanced_accuracy': balanced, 'val__auroc': auroc, 'val__accuracy': accuracy}
  evaluated = {name: [value] * len(losses) for name, value in values.items()}
  return ended.judge(TWO, lines(losses, list(accuracies), steps, val__loss=losses, **evaluated), [])


def test_a_run_that_predicts_the_largest_class_alone_is_stuck():
  found = unequal(0.5, 0.5)
  assert (found.state, found.kind) == ('sick', Kind.STUCK)
  said = (
    'val/balanced_accuracy is 50 % at step 400 (predicting one class alone gives 50 %), though val/accuracy is 90 %'
  )
  assert said in found.lines
  assert any('uniform prediction: 0.693' in line for line in found.lines)
  assert unequal(0.5, None).kind == Kind.STUCK


@pytest.mark.parametrize(
  ('options', 'state'),
  [
    ({'balanced': 0.8, 'auroc': 0.9}, 'healthy'),
    ({'balanced': 0.5, 'auroc': 0.8}, 'doubtful'),
    ({'balanced': 0.5, 'auroc': 0.5, 'accuracies': [0.9] * 2 + [0.99] * 6}, 'doubtful'),
    ({'balanced': 0.5, 'auroc': 0.5, 'steps': range(20, 180, 20)}, 'healthy'),
    ({'balanced': 0.8, 'auroc': 0.9, 'accuracies': [0.4] * 8, 'accuracy': 0.4}, 'healthy'),
  ],
  ids=['it learns', 'it ranks images well', 'it learns by heart', 'so early', 'weights cost accuracy'],
)
def test_what_looks_like_predicting_one_class_alone(options, state):
  found = unequal(**options)
  assert (found.state, found.kind) == (state, 'trainable')
  assert any('one class alone' in line for line in found.lines) == (options['balanced'] == 0.5)


def test_an_evaluation_from_before_does_not_speak_for_the_last_steps():
  evaluated = {'val__loss': [0.3] * 8, 'val__accuracy': [0.9] * 8, 'val__balanced_accuracy': [0.9] * 8}
  record_ = lines([0.3] * 8, [0.9] * 8, STEPS, **evaluated) + lines([0.69] * 4, [0.5] * 4, range(450, 650, 50))
  found = ended.judge(TWO, record_, [])
  assert (found.state, found.kind) == ('sick', Kind.LARGE_STEP)


def test_an_average_does_not_speak_for_the_last_steps():
  evaluated = {f'{split}__{name}': [value] * 8 for split, value in (('val', 0.1), ('val_ema', 0.8)) for name in SHARES}
  record_ = lines([0.5] * 4 + [2.3] * 4, [0.85] * 4 + [0.1] * 4, STEPS, **evaluated)
  assert ended.judge(CONFIG, record_, []).state == 'sick'


def test_overfitting_on_equal_classes_is_not_stuck_because_those_of_val_are_unequal():
  found = unequal(0.55, 0.57, accuracies=[0.6, 0.7, 0.8, 0.85, 0.9, 0.98, 0.99, 0.99], accuracy=0.93)
  assert (found.state, found.kind) == ('doubtful', 'trainable')


def test_an_evaluation_between_lines_counts():
  record_ = lines([0.5] * 4, [0.4] * 4, range(100, 500, 100))
  record_.append({'step': 390, 'val/loss': 0.5, 'val/accuracy': 0.4, 'val/balanced_accuracy': 0.8})
  assert ended.judge(TWO, record_, []).state == 'healthy'


@pytest.mark.parametrize(('accuracy', 'state'), [(0.4, 'healthy'), (0.2, 'sick')])
def test_an_evaluation_holds_until_the_accuracy_of_the_batches_falls(accuracy, state):
  evaluated = {'val__balanced_accuracy': [0.8] * 8, 'val__accuracy': [0.4] * 8, 'val__loss': [0.5] * 8}
  record_ = lines([0.5] * 8, [0.4] * 8, STEPS, **evaluated) + lines([0.5] * 4, [accuracy] * 4, range(450, 650, 50))
  assert ended.judge(TWO, record_, []).state == state


def evaluation(split, balanced, accuracy, auroc=None):
  """The metrics of one evaluation of a split."""
  return {f'{split}/balanced_accuracy': balanced, f'{split}/accuracy': accuracy, f'{split}/auroc': auroc}


@pytest.mark.parametrize(
  ('trained', 'loss', 'others', 'state', 'said'),
  [
    (0.9, 0.25, [('val', 0.55, 0.93, 0.57)], 'doubtful', ['val']),
    (0.7, 0.6, [('val', 0.55, 0.9, 0.56)], 'doubtful', ['val']),
    (0.9, 0.325, [('val', 0.5, 0.9, 0.5), ('test', 0.502, 0.502, 0.5)], 'sick', ['val']),
    (0.8, 0.5, [('val', 0.5, 0.8, 0.5), ('test', 0.5, 0.95, 0.5)], 'sick', ['val', 'test']),
    (0.9, 0.2, [('val', 0.8, 0.95, 0.9), ('test', 0.5, 0.9, 0.5)], 'doubtful', ['test']),
  ],
  ids=[
    'equal classes learnt by heart',
    'partly so',
    'a split of equal classes hides one class alone',
    'one of other frequencies does not',
    'it learns, but not for a split',
  ],
)
def test_splits_of_other_frequencies(trained, loss, others, state, said):
  evaluated = {name: value for each in others for name, value in evaluation(*each).items()}
  found = ended.judge(TWO, [*lines([loss] * 8, [trained] * 8, STEPS), {'step': 400} | evaluated], [])
  assert (found.state, found.kind) == (state, Kind.STUCK if state == 'sick' else 'trainable')
  assert [line.partition('/')[0] for line in found.lines if 'one class alone' in line] == said


@pytest.mark.parametrize(('accuracy', 'state'), [(0.9, 'healthy'), (0.5, 'sick')])
def test_an_evaluation_before_the_first_line(accuracy, state):
  record_ = [{'step': 100} | evaluation('val', 0.5, 0.5), *lines([0.3] * 2, [accuracy] * 2, [1000, 2000])]
  assert ended.judge(TWO, record_, []).state == state
  record_[0] = {'step': 100, 'val/accuracy': 0.5}  # of an older version
  assert ended.judge(TWO, record_, []).state == state
  record_[0] = {'step': 100} | evaluation('val', 0.9, 0.9)
  assert ended.judge(TWO, record_, []).state == 'healthy', 'it is as good as at its first line'


def test_a_loss_that_has_come_down_again():
  found = ended.judge(CONFIG, lines([2.3, 1.0, 90.0, 0.9, 0.8, 0.7], steps=range(100, 700, 100)), [])
  assert (found.state, found.kind) == ('healthy', 'trainable')


@pytest.mark.parametrize(('step', 'said'), [(1, 'before any update'), (50, 'is not finite from step 50 on')])
def test_a_first_loss_that_is_not_finite_is_not_the_work_of_the_rate(step, said):
  found = ended.judge(CONFIG, lines([None, None], [0.1, 0.1], [step, step + 1]), [step, step + 1])
  assert (found.state, found.kind, found.entry, found.step) == ('sick', 'exploding', None, 0 if step == 1 else step)
  assert any(said in line for line in found.lines)
  assert not any(word in line for line in found.lines for word in ('rises', 'learning_rate', 'from before'))


def test_a_head_that_starts_at_zero_does_not_explode():
  record_ = [line | row for line, row in zip(lines(FALLS), rows((0.0, 0.0, 1.0), *[(1.0, 1.0, 1.0)] * 19), strict=True)]
  assert ended.judge(CONFIG, record_, []).state == 'healthy'


@pytest.mark.parametrize(
  ('norms', 'kind', 'entry'),
  [
    (rows(*[(1.0, 1.0, 1.0)] * 4, *[(1e-7, 1e-3, 1.0)] * 16), 'vanishing', 'stem'),
    (rows(*[(1.0, 1.0, 1.0)] * 4, *[(1e7, 1e3, 1.0)] * 16), 'exploding', 'stem'),
    (rows(*[(1.0, 1.0, 1.0)] * 4, *[(None, None, 1.0)] * 16), 'exploding', 'block'),
  ],
)
def test_the_telemetry_says_what_and_when(norms, kind, entry):
  record_ = [line | row for line, row in zip(lines([2.3] * 20, [0.1] * 20), norms, strict=True)]
  found = ended.judge(CONFIG, record_, [])
  assert (found.state, found.kind, found.entry, found.step) == ('sick', kind, entry, 50)


def test_units_that_die_after_the_loss_has_risen_are_not_named():
  losses = [*FALLS[:10], 50.0, 1e5, 1e9, 1e9, 1e9, 1e9, 1e9, 1e9, 1e9, 1e9]
  record_ = [line | {'telemetry/block/dead': 1.0 * (line['step'] > 120)} for line in lines(losses)]
  found = ended.judge(CONFIG, record_, [])
  assert found.kind == Kind.LARGE_STEP and not any('dead' in line for line in found.lines)
  assert any('config.optim.learning_rate' in line for line in found.lines)


def test_dead_units():
  record_ = [line | {'telemetry/block/dead': 0.2 * (line['step'] > 70) + 0.75} for line in lines(FALLS)]
  found = ended.judge(CONFIG, record_, [])
  assert found.state == 'doubtful', 'it learns all the same'
  assert any(line.startswith('step 80: dead from block on') for line in found.lines)


def test_overfitting_is_said_with_its_step():
  val = [1.0, 0.8, 0.5, 0.7, 1.2] + [1.5] * 15
  found = ended.judge(CONFIG, lines(FALLS, val__loss=val, val__accuracy=[0.5] * 20), [])
  assert found.state == 'doubtful' and found.kind == Kind.TRAINABLE
  assert any('val/loss rises from 0.5 at step 30' in line for line in found.lines)
  assert any('val/accuracy is 50 %' in line for line in found.lines)


def test_an_evaluation_that_is_not_finite_at_the_end_is_sick():
  val = [0.5] * 16 + [None] * 4
  found = ended.judge(CONFIG, lines(FALLS, val__loss=val, val__accuracy=[0.9] * 16 + [None] * 4), [100, 160, 170, 200])
  assert (found.state, found.kind, found.step) == ('sick', 'exploding', 170)
  assert any('val/loss is not finite from the evaluation of step 170 on' in line for line in found.lines)
  assert any('checkpoint of step 160 is from before' in line for line in found.lines)
  again = ended.judge(CONFIG, lines(FALLS, val__loss=[0.5, None] + [0.5] * 18), [])
  assert again.state == 'healthy', 'it is finite again'


def test_an_evaluation_of_the_training_split_is_no_training():
  evaluated = {'train__loss': [9.0] * 19 + [None], 'train__accuracy': [0.2] * 20}
  found = ended.judge(CONFIG, lines(FALLS, **evaluated), [])
  assert found.state == 'sick' and any('train/loss is not finite from the evaluation' in line for line in found.lines)
  assert any('accuracy of the batches 90 %' in line for line in found.lines)
  assert not any('the loss is not finite' in line or 'overfits' in line for line in found.lines)
  config = CONFIG | {'data': {'train_split': 'train[:90%]'}}
  for split, said in (('train[:10%]_ema', False), ('train[90%:]_ema', True)):
    rises = {f'{split}__loss': [0.1] * 10 + [0.2] * 10}
    assert any('overfits' in line for line in ended.judge(config, lines(FALLS, **rises), []).lines) is said


@pytest.mark.usefixtures('undrawn')
@pytest.mark.parametrize('log_every', ['1', '1000'])
def test_the_program_reads_a_run(tiny, tmp_path, run_here, log_every):
  tiny.optim.learning_rate, tiny.model.norm, tiny.train.log_every = 1e10, 'none', log_every
  with pytest.raises(errors.RunError):
    loop.train(tiny, tmp_path, record.Clock(0.0), 'test')
  before = {path: path.read_bytes() for path in tmp_path.rglob('*') if path.is_file()}
  code, output = run_here('probe', f'--workdir={tmp_path}')
  assert code == 0, output
  assert f'{tmp_path}: sick; step too large' in output
  assert 'the loss is not finite from step' in output
  assert {path: path.read_bytes() for path in tmp_path.rglob('*') if path.is_file()} == before


def test_an_ended_run_is_not_trained(tmp_path, run_here):
  for flag in ('--try', '--seeds=2', '--seconds=5'):
    code, output = run_here('probe', f'--workdir={tmp_path}', flag)
    assert code == 2 and '--config' in output


@pytest.mark.parametrize('there', [False, True])
def test_folders_without_a_run_are_refused(tmp_path, run_here, there):
  if there:
    (tmp_path / 'config.json').write_text(json.dumps(CONFIG))
  code, output = run_here('probe', f'--workdir={tmp_path}')
  assert code == 2 and len(output.splitlines()) == 1 and str(tmp_path) in output


@pytest.mark.parametrize(
  ('content', 'said'),
  [('{}', 'model.num_classes'), ('{"model": 5}', "'model'"), ('{"model": {"num_classes": 0}}', 'model.num_classes')],
)
def test_a_damaged_config_is_named_in_one_line(tmp_path, refused, content, said):
  (tmp_path / 'config.json').write_text(content)
  (tmp_path / 'metrics.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines(FALLS)))
  message = refused(f'--workdir={tmp_path}', name='probe')
  assert str(tmp_path / 'config.json') in message and said in message


def test_lines_that_lack_a_metric_are_left_out(tmp_path):
  (tmp_path / 'config.json').write_text(json.dumps(CONFIG))
  path, whole = tmp_path / 'metrics.jsonl', lines(FALLS)
  path.write_text(''.join(json.dumps(line) + '\n' for line in whole))
  found = ended.read(tmp_path)
  lacking = [{'step': 300, 'train/learning_rate': 0.1}, {'step': 300, 'test/balanced_accuracy': 0.5}]
  path.write_text(''.join(json.dumps(line) + '\n' for line in [*whole, *lacking]))
  assert ended.read(tmp_path) == found
  path.write_text(json.dumps(lacking[0]) + '\n')
  with pytest.raises(errors.InputError, match='no line of training'):
    ended.read(tmp_path)
