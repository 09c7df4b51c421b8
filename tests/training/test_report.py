import dataclasses
import html.parser
import json
import os
import re
import subprocess
import sys
import types

import jax.numpy as jnp
import pytest
from PIL import Image

from dnt import config, trees
from dnt.models import depth, freeze
from dnt.parallel import mesh as mesh_lib
from dnt.reporting import metrics
from dnt.training import report

pytestmark = pytest.mark.usefixtures('eight_devices')


def _row(name, shape=(8, 8, 16), parameters=4672, flops=589_824):
  return depth.Row(depth.Entry(name, name), shape, parameters, flops)


TABLE = (
  _row('stem', parameters=176, flops=18_432),
  _row('stage1/block001'),
  _row('stage1/block002'),
  _row('gain', None, 3, 0),
  _row('head', (10,), 650, 1280),
)


def test_block_table():
  assert report.block_table(TABLE).splitlines() == [
    'entry            output  parameters   FLOPs',
    'stem             8x8x16         176  18.4 k',
    'stage1/block001  8x8x16       4,672   590 k',
    'stage1/block002  8x8x16       4,672   590 k',
    'gain                  -           3       0',
    'head                 10         650  1.28 k',
    'total                        10,173   1.2 M',
  ]


@pytest.mark.parametrize(
  ('found', 'line'),
  [
    ({}, 'trains on 8 CPU devices'),
    ({'count': 1}, 'trains on 1 CPU device'),
    (
      {'platform': 'gpu', 'kind': 'NVIDIA H100', 'count': 32, 'processes': 4},
      'trains on 32 NVIDIA H100 devices, 4 processes',
    ),
  ],
)
def test_a_line_says_on_which_devices_a_run_trains(monkeypatch, found, line):
  mesh = mesh_lib.make_mesh(config.default().mesh)
  found = report.devices(mesh) | found
  monkeypatch.setattr(report, 'devices', lambda mesh: found)
  assert report.device_line(mesh) == line


@pytest.mark.parametrize(
  ('start', 'chosen', 'norm', 'line'),
  [
    (4, 'all', 'running', 'from step 4 on all entries train: 19 parameters'),
    (0, 'head', 'running', 'from step 0 on head trains: 3 of 19 parameters'),
    (1000, 'top:2', 'running', 'from step 1,000 on stage1/block002, gain, head train: 9 of 19 parameters'),
    (0, 'top:3', 'running', 'from step 0 on stage1, gain, head train: 14 of 19 parameters'),
    (0, 'head', 'affine_only', 'from step 0 on head and the norms of the others train: 5 of 19 parameters'),
    (0, 'top:3', 'affine_only', 'from step 0 on stage1, gain, head train: 14 of 19 parameters'),
  ],
)
def test_a_line_names_what_trains_from_the_start_of_a_phase_on(start, chosen, norm, line):
  sizes = {'stem': 5, 'stage1/block001': 5, 'stage1/block002': 5, 'gain': 1, 'head': 3}
  block = {'kernel': jnp.ones(3), 'norm': {'scale': jnp.ones(1), 'bias': jnp.ones(1)}}
  params = {
    'stem': {'kernel': jnp.ones(5)},
    'stage1': {'block001': {'kernel': jnp.ones(5)}, 'block002': block},
    'gain': jnp.ones(1),
    'head': {'kernel': jnp.ones(3)},
  }
  table = [_row(name, parameters=size) for name, size in sizes.items()]
  options = config.default().finetune
  options.trainable, options.frozen_norm = chosen, norm
  (phase,) = freeze.plan(options, table, params, 10, 1.0)
  assert report.phase_line(dataclasses.replace(phase, start=start), table, params) == line


def test_block_table_of_a_deep_network():
  table = [_row('stem')]
  for stage in (1, 2):
    table += [_row(f'stage{stage}/block{i:03d}', parameters=4672 + (i == 1)) for i in range(1, 101)]
  table.append(_row('head', (10,), 650, 1280))
  assert report.block_table(table).splitlines() == [
    'entry                        output  parameters       FLOPs',
    'stem                         8x8x16       4,672       590 k',
    'stage1/block001              8x8x16       4,673       590 k',
    'stage1/block002 .. block100  8x8x16  99 x 4,672  99 x 590 k',
    'stage2/block001              8x8x16       4,673       590 k',
    'stage2/block002 .. block100  8x8x16  99 x 4,672  99 x 590 k',
    'head                             10         650      1.28 k',
    'total                                   939,724       119 M',
  ]
  # ResNet-110, with 56 rows, is shown whole.
  whole = [_row(f'stage1/block{i:03d}') for i in range(1, 57)]
  assert len(report.block_table(whole).splitlines()) == 58
  *_, outside, total = report.block_table(whole, 10**12).splitlines()
  assert outside.startswith('outside entries') and outside.endswith(' 1 T') and total.endswith(' 1 T')


@pytest.mark.parametrize(
  'number, text',
  [
    (0, '0'),
    (999, '999'),
    (1000, '1 k'),
    (999_400, '999 k'),
    (999_600, '1 M'),
    (40_813_184, '40.8 M'),
    (8.2e9, '8.2 G'),
  ],
)
def test_quantities_have_three_digits(number, text):
  assert report._quantity(int(number)) == text


def test_matplotlib_is_imported_when_a_figure_is_drawn():
  code = 'import sys; from dnt.training import report; assert "matplotlib" not in sys.modules'
  subprocess.run([sys.executable, '-c', code], check=True)


# A whole report, of a run that stands in for a trained one.


def _run_and_record(finished=True, scan=False):
  options = config.default()
  options.train.steps = 1000 if finished else 2000
  options.data.source = 'folder:<script>alert("&")</script>'
  spec = types.SimpleNamespace(class_names=('cat', '<b>dog</b>'))
  kernels = jnp.arange(12.0).reshape(3, 4)
  blocks = {f'block{i + 1:03d}': {'kernel': kernels[i]} for i in range(3)}
  if scan:
    blocks = {'block001': {'kernel': kernels[0]}, 'scanned': {'kernel': kernels[1:]}}
  state = types.SimpleNamespace(step=jnp.int32(1000), params={'stage1': blocks, 'head': {'bias': jnp.ones(2)}})
  record = types.SimpleNamespace(
    seconds={'setup': 1.0, 'compile': 2.0, 'train': 8.0, 'evaluate': 0.5, 'checkpoint': 0.25},
    is_finished=lambda step: finished,
    best_checkpoint={},
    provenance={
      'data': {'train': {'images': 1437, 'content': 'c0ffee' * 10, 'labels': None}},
      'weights': {'origin': 'hf:timm/toy', 'revision': 'd1e' * 13, 'sha256': {'model.safetensors': 'feed' * 16}},
    },
    last={'train/loss': 0.1, 'test/loss': float('nan'), 'test/accuracy': 0.9625, 'images_per_second': 16123.4},
    best={'metric': 'test/accuracy', 'value': 0.97, 'step': 800},
    warnings={'dead': {'step': 100, 'text': 'units are dead'}},
    images=900 * 128 + 100 * 256,
    peak_memory={'process': 2**29, 'device': None},
  )
  phase = types.SimpleNamespace(partition=freeze.ALL)
  trace = types.SimpleNamespace(outside=0)
  run = types.SimpleNamespace(config=options, spec=spec, table=TABLE, trace=trace, phase_of_state=lambda step: phase)
  return run, record, state


@pytest.fixture(scope='module')
def written(tmp_path_factory, records):
  workdir = tmp_path_factory.mktemp('runs') / 'my <run>'
  workdir.mkdir()
  writer = metrics.Writer(workdir, 0)
  for line in records:
    values = {name: value for name, value in line.items() if name not in ('step', 'epoch') and value is not None}
    writer.write(line['step'], line['epoch'], values)
  writer.close()
  matrix = {'split': 'test[:50%]', 'step': 1000, 'class_names': ['cat', '<b>dog</b>'], 'matrix': [[48, 2], [1, 29]]}
  matrix['per_class'] = {
    'examples': [50, 30],
    'sensitivity': [0.96, 29 / 30],
    'specificity': [29 / 30, 0.96],
    'auroc': [0.98765, None],
  }
  (workdir / 'confusion_test_50.json').write_text(json.dumps(matrix))
  older = {'split': 'val', 'step': 1000, 'class_names': ['cat', 'dog'], 'matrix': [[1, 0], [0, 1]]}
  (workdir / 'confusion_val.json').write_text(json.dumps(older))
  run, record, state = _run_and_record()
  mesh = mesh_lib.make_mesh(config.default().mesh)
  summary = report.write(run, record, state, workdir, mesh, 'python -m dnt.main --a="b"')
  return workdir, summary, state


def _strict(path):
  return json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f'{name} is not JSON'))


def test_summary(written):
  workdir, summary, state = written
  stored = _strict(workdir / 'summary.json')
  assert stored['last'] == {**summary['last'], 'test/loss': None}
  assert {**stored, 'last': 0} == {**summary, 'last': 0}
  assert (stored['step'], stored['total_steps'], stored['finished']) == (1000, 1000, True)
  assert stored['best'] == {'metric': 'test/accuracy', 'value': 0.97, 'step': 800}
  assert stored['warnings'] == {'dead': {'step': 100, 'text': 'units are dead'}}
  assert stored['peak_memory'] == {'process': 2**29, 'device': None}
  assert stored['parameters'] == stored['trainable_parameters'] == 14 and stored['params_sha256'] == trees.sha256(
    state.params
  )
  assert stored['seconds']['total'] == 11.75
  assert stored['seconds'].keys() >= {'total', 'compile', 'train', 'evaluate'}
  assert stored['images_per_second'] == (900 * 128 + 100 * 256) / 8
  assert stored['versions'].keys() >= {'python', 'jax', 'flax', 'optax', 'orbax-checkpoint'}
  devices = {'platform': 'cpu', 'kind': 'cpu', 'count': 8, 'processes': 1, 'mesh': 'data 8 x fsdp 1'}
  assert stored['devices'] == {**devices, 'cores': len(os.sched_getaffinity(0))}
  assert stored['provenance']['data']['train']['content'] == 'c0ffee' * 10
  assert stored['provenance']['weights']['revision'] == 'd1e' * 13
  assert stored['command'] == 'python -m dnt.main --a="b"'
  assert not list(workdir.glob('*.partial'))


def test_images(written):
  workdir, _, _ = written
  for name in ('confusion_test_50.png', 'curves.png'):
    with Image.open(workdir / name) as figure:
      assert figure.format == 'PNG'


class _Page(html.parser.HTMLParser):
  """Checks that tags nest, and collects text, images and every attribute that could fetch something."""

  def __init__(self):
    super().__init__()
    self.open, self.text, self.images, self.links = [], [], [], []

  def handle_starttag(self, tag, attrs):
    if tag not in ('meta', 'img'):
      self.open.append(tag)
    self.images += [value for name, value in attrs if tag == 'img' and name == 'src']
    self.links += [value for name, value in attrs if name in ('href', 'src', 'srcset', 'data', 'action')]
    assert tag not in ('script', 'link', 'iframe')

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    self.text.append(data)


def test_report_stands_alone(written):
  workdir, _, _ = written
  source = (workdir / 'report.html').read_text()
  page = _Page()
  page.feed(source)
  page.close()
  assert page.open == []
  assert len(page.images) == 3 and all(link.startswith('data:image/png;base64,') for link in page.links)
  assert not re.search(r'https?:|//|@import|url\(', re.sub(r'base64,[A-Za-z0-9+/=]+', '', source))
  text = ' '.join(page.text)
  assert page.text.count('sensitivity') == 1
  assert 'cat 50 96.00 % 96.67 % 0.9877 <b>dog</b> 30 96.67 % 96.00 % -' in ' '.join(text.split())
  for expected in ('my <run>', 'step 1,000 of 1,000', 'test/accuracy 96.25 %', 'not finite',
                   'test/accuracy 97.00 % at step 800', '1,437 images', 'c0ffeec0ffeec0ff', 'hf:timm/toy', 'd1ed1e',
                   'stage1/block002', 'optim.learning_rate', '0.1',
                   'folder:<script>alert("&")</script>', 'python -m dnt.main --a="b"'):  # fmt: skip
    assert expected in text, expected


def test_of_many_classes_the_least_found_are_shown():
  names, fraction = [f'class {place}' for place in range(196)], [place / 196 for place in range(196)]
  figures = {'examples': [41] * 196, 'sensitivity': fraction[::-1], 'specificity': fraction, 'auroc': fraction}
  for name in ('sensitivity', 'specificity', 'auroc'):
    figures[name][195] = None
  figures['examples'][195] = 0
  header, *rows = report.class_table(names, figures)
  assert '196' in header[0]
  assert [row[0] for row in rows] == [f'class {place}' for place in range(194, 174, -1)]
  assert rows[0] == ('class 194', '41', '0.51 %', '98.98 %', '0.9898')
  _, *rows = report.class_table(names[156:], {name: values[156:] for name, values in figures.items()})
  assert len(rows) == 40 and rows[-1] == ('class 195', '0', '-', '-', '-')


def test_the_table_of_classes_has_no_column_without_a_value():
  figures = {'examples': [3, 1], 'sensitivity': [1.0, 0.0], 'specificity': [0.0, 1.0], 'auroc': [None, None]}
  header, *rows = report.class_table(('cat', 'dog'), figures)
  assert 'AUROC' not in header and {len(row) for row in rows} == {4}


def test_what_the_loss_of_training_has_and_an_evaluation_has_not():
  options = config.default()
  assert report.training_extras(options) == {'loss': [], 'accuracy': []}
  options.loss.label_smoothing, options.data.augment = 0.1, 'pad_crop_flip'
  assert report.training_extras(options) == {
    'loss': ['augmentation', 'label smoothing'],
    'accuracy': ['augmentation'],
  }
  options.data.augment, options.data.mixup, options.loss.class_weights = 'none', 0.2, (1.0, 2.0)
  assert report.training_extras(options)['loss'] == ['mixup', 'label smoothing', 'class weights']
  options.model.stochastic_depth, options.data.erasing = 0.1, 0.5
  assert report.training_extras(options)['accuracy'] == ['augmentation', 'mixup', 'stochastic depth']


def test_layouts_have_the_same_digest(written, tmp_path):
  _, summary, _ = written
  run, record, state = _run_and_record(finished=False, scan=True)
  mesh = mesh_lib.make_mesh(config.default().mesh)
  scanned = report.write(run, record, state, tmp_path, mesh, 'go on')
  assert scanned['params_sha256'] == summary['params_sha256']
  assert not scanned['finished']
  assert not (tmp_path / 'curves.png').exists(), 'no record, no curves'
  assert 'step 1,000 of 2,000' in (tmp_path / 'report.html').read_text()


def test_run_that_never_trained(tmp_path):
  run, record, state = _run_and_record(finished=False)
  record.seconds, record.last, record.best = {'setup': 1.0}, {}, {}
  summary = report.write(run, record, state, tmp_path, mesh_lib.make_mesh(config.default().mesh), 'x')
  assert summary['images_per_second'] is None and summary['best'] == {}


def test_early_stopping_is_finished(tmp_path):
  run, record, state = _run_and_record(finished=False)
  record.is_finished = lambda step: True
  assert report.write(run, record, state, tmp_path, mesh_lib.make_mesh(config.default().mesh), 'x')['finished']


def test_last_lines(written):
  _, summary, _ = written
  assert report.last_line(summary, 'run it') == (
    'finished step 1000  test/loss not finite  test/accuracy 96.25 %  best test/accuracy 97.00 % at step 800  12 s'
  )
  best = {'step': 800, 'test/loss': 0.25, 'test/accuracy': 0.96}
  line = report.last_line({**summary, 'best_checkpoint': best}, '')
  assert line.endswith(' at step 800  best checkpoint: test/accuracy 96.00 %  12 s') and line.count('step 800') == 1
  assert '  best checkpoint: step 600  test/accuracy 96.00 %  ' in report.last_line(
    {**summary, 'best_checkpoint': {**best, 'step': 600}}, ''
  )
  last = {**summary, 'best_checkpoint': {**best, 'step': 1000}}
  assert report.last_line(last, '') == report.last_line(summary, ''), 'the figures of the last step stand there already'
  by_area = {'metric': 'test/auroc', 'value': 0.9, 'step': 800}
  more = {'test/balanced_accuracy': 0.5, 'test/auroc': 0.875, 'test/calibration_error': 0.1}
  line = report.last_line(
    {**summary, 'last': summary['last'] | more, 'best': by_area, 'best_checkpoint': best | more}, ''
  )
  assert line == (
    'finished step 1000  test/loss not finite  test/accuracy 96.25 %  test/auroc 0.8750  '
    'best test/auroc 0.9000 at step 800  best checkpoint: test/accuracy 96.00 %  test/auroc 0.8750  12 s'
  )
  stopped = {**summary, 'finished': False, 'total_steps': 5000}
  assert re.search('1000 of 5000.* `run it`', report.last_line(stopped, 'run it'))
  assert report.evaluation_line({'step': 7, 'test/loss': 0.25, 'test/accuracy': 0.5}) == (
    'step 7  test/loss 0.2500  test/accuracy 50.00 %'
  )


@pytest.mark.parametrize(
  ('line', 'accuracy'), [({}, 0.75), ({'train/accuracy': None}, None), ({'train/accuracy': 0.5}, 0.5)]
)
def test_the_accuracy_beside_a_matrix_is_that_of_the_evaluation(line, accuracy):
  evaluated = {'split': 'train', 'step': 10, 'matrix': [[2, 0], [1, 1]]}
  training = {'step': 10, 'train/accuracy': 0.9, 'train/learning_rate': 0.1}
  assert report._accuracy(evaluated, [{'step': 5, 'train/accuracy': 0.1}, training, {'step': 10} | line]) == accuracy
