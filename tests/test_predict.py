"""The program: what it says of pictures, what it writes, and what it refuses."""

import csv
import functools
import json
import re
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from dnt import inference
from dnt.parallel import mesh as mesh_lib


@pytest.fixture
def program(run_here):
  """Runs `python -m dnt.predict`: (exit code, output)."""
  return functools.partial(run_here, 'predict')


@pytest.fixture
def pictures(tmp_path):
  """A folder of seven pictures, two of which cannot be read."""
  draw = np.random.default_rng(0)
  folder = tmp_path / 'pictures'
  folder.mkdir()
  for index in range(5):
    Image.fromarray(draw.integers(0, 256, (9 + index, 8, 3), np.uint8)).save(folder / f'{index}.png')
  (folder / '1.jpg').write_bytes(b'no picture')
  (folder / '5.png').write_bytes(b'')
  return folder


def expected(workdir, paths):
  """Softmax of the logits, in NumPy."""
  network = inference.load(str(workdir))
  x = network.preprocess(inference.read(network, paths).pictures)
  logits = np.asarray(jax.jit(lambda v, x: network.model.apply(v, x, train=False))(network.variables, x), np.float64)
  shares = np.exp(logits - logits.max(-1, keepdims=True))
  return shares / shares.sum(-1, keepdims=True)


@pytest.mark.parametrize('size', [2, 32])
def test_all_pictures_are_predicted_whatever_the_batch(tiny, saved, pictures, tmp_path, size):
  saved(tiny)
  mesh = mesh_lib.make_mesh(tiny.mesh)
  network = inference.load(str(tmp_path / 'run'), mesh)
  paths = inference.find(str(pictures))
  found = list(inference.predict(network, mesh, paths, size, 99))
  assert [len(each.paths) + len(each.unreadable) for each in found] == {2: [2, 2, 2, 1], 32: [7]}[size]
  good = [path for each in found for path in each.paths]
  assert good == [str(pictures / f'{index}.png') for index in range(5)]
  want = expected(tmp_path / 'run', good)
  indexes = np.concatenate([each.indexes for each in found])
  np.testing.assert_array_equal(indexes, np.argsort(-want, axis=-1, kind='stable'))
  probabilities = np.concatenate([each.probabilities for each in found])
  np.testing.assert_allclose(probabilities, np.take_along_axis(want, indexes, -1), rtol=1e-5)


def test_the_program_prints_and_writes_what_it_found(program, tiny, saved, pictures, tmp_path):
  tiny.ema.decay = 0.5
  saved(tiny)
  names = tmp_path / 'names.txt'
  names.write_text('\n'.join(f'name {index}' for index in range(10)) + '\n\n')
  given = [f'--workdir={tmp_path / "run"}', f'--images={pictures}', '--top=2', '--batch_size=4']
  code, output = program(*given, f'--output={tmp_path / "found.json"}')
  assert code == 0, output
  lines = output.splitlines()
  assert lines[-1] == f'5 pictures, 2 skipped  {tmp_path / "found.json"}'
  good = [str(pictures / f'{index}.png') for index in range(5)]
  want = expected(tmp_path / 'run', good)
  found = json.loads((tmp_path / 'found.json').read_text())
  assert (found['weights'], found['step']) == (str(tmp_path / 'run'), 7)
  for path, shares, entry in zip(good, want, found['predictions'], strict=True):
    best = np.argsort(-shares)[:2]
    assert entry['picture'] == path
    assert [(each['class'], each['index']) for each in entry['classes']] == [(f'class{i}', i) for i in best]
    np.testing.assert_allclose([each['probability'] for each in entry['classes']], shares[best], rtol=1e-5)
    shown = '  '.join(f'class{index} {100 * shares[index]:.2f} %' for index in best)
    assert f'{path}  {shown}' in lines
  assert list(found['unreadable']) == [str(pictures / '1.jpg'), str(pictures / '5.png')]
  said = [line.removeprefix('skipped: ') for line in lines if line.startswith('skipped: ')]
  assert said == list(found['unreadable'].values())
  assert any(re.fullmatch(r'pictures 4/7  [\d,]+ images/s  ETA \d+ s', line) for line in lines)

  code, output = program(*given, f'--class_names={names}', f'--output={tmp_path / "found.csv"}')
  assert code == 0, output
  with (tmp_path / 'found.csv').open() as file:
    rows = list(csv.DictReader(file))
  assert [(row['picture'], row['rank']) for row in rows] == [(path, rank) for path in good for rank in '12']
  assert all(row['class'] == f'name {row["index"]}' for row in rows)


INTERRUPTED = """
from dnt import cli, inference

whole = inference.predict

def predict(*arguments):
  yield next(whole(*arguments))
  raise KeyboardInterrupt

inference.predict = predict

from dnt import predict as program

cli.run(program.PROGRAM)
"""


def test_an_interrupt_keeps_what_was_found(start, finish, tiny, saved, pictures, tmp_path):
  saved(tiny)
  output = tmp_path / 'found.csv'
  flags = [f'--workdir={tmp_path / "run"}', f'--images={pictures}', f'--output={output}', '--batch_size=4']
  said = finish(start([sys.executable, '-c', INTERRUPTED, *flags]))
  assert said.splitlines()[-1] == f'3 pictures, 1 skipped, stopped before the other 3  {output}'
  with output.open() as file:
    found = [row['picture'] for row in csv.DictReader(file)]
  assert found == [str(pictures / f'{index}.png') for index in range(3) for _ in range(5)]


def test_bad_input_is_one_line(program, tiny, saved, pictures, tmp_path):
  saved(tiny)
  run, images = f'--workdir={tmp_path / "run"}', f'--images={pictures}'
  (tmp_path / 'two.txt').write_text('one\ntwo\n')
  for arguments, said in (
    ([images, run, '--weights=tfjs:somewhere'], 'give not both: --workdir='),
    ([f'--workdir={pictures}', images], 'is no workdir of a dnt run'),
    ([run], 'give --images='),
    ([run, '--image=x'], "Unknown command line flag 'image'"),
    ([run, images, '--top=0'], '--top'),
    ([run, images, '--output=found.txt'], 'must end in .csv or .json'),
    ([run, images, f'--output={tmp_path / "no" / "found.csv"}'], 'there is no folder'),
    ([run, images, '--class_names=no.txt'], 'cannot be read as text'),
    ([run, images, f'--class_names={tmp_path / "two.txt"}'], 'holds 2 names, and'),
    ([run, f'--images={tmp_path / "*.gif"}'], 'there are no pictures at'),
  ):
    code, output = program(*arguments)
    assert code == 2, (arguments, output)
    assert said in output
    assert len(output.splitlines()) == 1 and output.startswith('error: '), output
  code, output = program(run, f'--images={pictures / "5.png"}')
  assert code == 2
  skipped, error = output.splitlines()
  assert skipped.startswith('skipped: cannot read the picture') and 'it is empty, 0 bytes' in skipped
  assert error.startswith('error: none of the 1 pictures at ')
