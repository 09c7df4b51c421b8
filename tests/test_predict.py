"""The program: what it says of images, what it writes, and what it refuses."""

import csv
import functools
import json
import os
import re
import shutil
import sys
import unicodedata

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from dnt import config, inference, predict
from dnt.config import run_config
from dnt.parallel import mesh as mesh_lib
from dnt.training import datasets, evaluate


@pytest.fixture
def program(run_here):
  """Runs `python -m dnt.predict`: (exit code, output)."""
  return functools.partial(run_here, 'predict')


@pytest.fixture
def folder_of_images(tmp_path):
  """A folder of seven images, two of which cannot be read."""
  draw = np.random.default_rng(0)
  folder = tmp_path / 'pictures'
  folder.mkdir()
  for index in range(5):
    Image.fromarray(draw.integers(0, 256, (9 + index, 8, 3), np.uint8)).save(folder / f'{index}.png')
  (folder / '1.jpg').write_bytes(b'no image')
  (folder / '5.png').write_bytes(b'')
  return folder


def expected(workdir, paths):
  """Softmax of the logits, in NumPy."""
  network = inference.load(str(workdir))
  x = network.preprocess(inference.read(network, paths).images)
  logits = np.asarray(jax.jit(lambda v, x: network.model.apply(v, x, train=False))(network.variables, x), np.float64)
  probabilities = np.exp(logits - logits.max(-1, keepdims=True))
  return probabilities / probabilities.sum(-1, keepdims=True)


@pytest.mark.parametrize('suffix', ['csv', 'json'])
def test_names_that_are_not_utf8_are_written_escaped(program, trained, folder_of_images, tmp_path, suffix):
  for old, new in (('0.png', b'\xe9.png'), ('1.jpg', b'\xff.jpg')):
    (folder_of_images / old).rename(folder_of_images / os.fsdecode(new))
  (folder_of_images / 'notes.txt').write_text('')
  output = tmp_path / f'found.{suffix}'
  code, said = program(f'--workdir={trained.workdir}', f'--images={folder_of_images}', f'--output={output}')
  assert code == 0, said
  assert '1 .txt' in said.splitlines()[0]
  for text in (said, output.read_text(encoding='utf-8')):
    text.encode()
  if suffix == 'csv':
    with output.open(encoding='utf-8') as file:
      paths = [row['image'] for row in csv.DictReader(file)]
  else:
    content = json.loads(output.read_text(encoding='utf-8'))
    paths = [each['image'] for each in content['predictions']]
    assert str(folder_of_images / '\\xff.jpg') in content['unreadable']
  assert str(folder_of_images / '\\xe9.png') in paths


@pytest.mark.parametrize('size', [2, 32])
def test_all_images_are_predicted_whatever_the_batch(trained, folder_of_images, size):
  mesh = mesh_lib.make_mesh(config.default().mesh)
  network = inference.load(str(trained.workdir), mesh)
  paths = inference.find(str(folder_of_images))
  found = list(inference.predict(network, mesh, paths, size, 99))
  assert [len(each.paths) + len(each.unreadable) for each in found] == {2: [2, 2, 2, 1], 32: [7]}[size]
  good = [path for each in found for path in each.paths]
  assert good == [str(folder_of_images / f'{index}.png') for index in range(5)]
  want = expected(trained.workdir, good)
  indexes = np.concatenate([each.indexes for each in found])
  np.testing.assert_array_equal(indexes, np.argsort(-want, axis=-1, kind='stable'))
  probabilities = np.concatenate([each.probabilities for each in found])
  np.testing.assert_allclose(probabilities, np.take_along_axis(want, indexes, -1), rtol=1e-5)


def test_the_program_prints_and_writes_what_it_found(program, trained, folder_of_images, slow_count, tmp_path):
  slow_count(20.0)
  names = tmp_path / 'names.txt'
  names.write_text('\n'.join(f'name {index}' for index in range(10)) + '\n\n')
  given = [f'--workdir={trained.workdir}', f'--images={folder_of_images}', '--top=2', '--batch_size=4']
  code, output = program(*given, f'--output={tmp_path / "found.json"}')
  assert code == 0, output
  lines = output.splitlines()
  assert re.fullmatch(f'5 .*2 skipped  {re.escape(str(tmp_path / "found.json"))}', lines[-1])
  good = [str(folder_of_images / f'{index}.png') for index in range(5)]
  want = expected(trained.workdir, good)
  found = json.loads((tmp_path / 'found.json').read_text())
  assert (found['weights'], found['step']) == (str(trained.workdir), 4)
  for path, probabilities, entry in zip(good, want, found['predictions'], strict=True):
    best = np.argsort(-probabilities)[:2]
    assert entry['image'] == path
    assert [(each['class'], each['index']) for each in entry['classes']] == [(f'class{i}', i) for i in best]
    np.testing.assert_allclose([each['probability'] for each in entry['classes']], probabilities[best], rtol=1e-5)
    shown = '  '.join(f'class{index} {100 * probabilities[index]:.2f} %' for index in best)
    assert f'{path}  {shown}' in lines
  assert list(found['unreadable']) == [str(folder_of_images / '1.jpg'), str(folder_of_images / '5.png')]
  said = [line.removeprefix('skipped: ') for line in lines if line.startswith('skipped: ')]
  assert said == list(found['unreadable'].values())
  assert any(re.fullmatch(r'images 4/7  [\d,]+ images/s  ETA \d+ s', line) for line in lines)

  code, output = program(*given, f'--class_names={names}', f'--output={tmp_path / "found.csv"}')
  assert code == 0, output
  with (tmp_path / 'found.csv').open() as file:
    rows = list(csv.DictReader(file))
  assert [(row['image'], row['rank']) for row in rows] == [(path, rank) for path in good for rank in '12']
  assert all(row['class'] == f'name {row["index"]}' for row in rows)
  assert {(row['true_class'], row['loss']) for row in rows} == {('', '')}


@pytest.fixture
def blind(monkeypatch):
  """Networks have no finite logits for images whose first value is at least `least`: `blind(least)`."""
  load = inference.load

  def install(least):
    def changed(*given):
      network = load(*given)

      def preprocess(images):
        return jnp.where(images[:, :1, :1, :1] < least, network.preprocess(images), jnp.nan)

      return network._replace(preprocess=preprocess)

    monkeypatch.setattr(inference, 'load', changed)

  return install


def test_an_image_without_finite_logits_is_skipped_as_one_that_cannot_be_read(
  program, trained, labelled_folders, tmp_path, blind
):
  root = labelled_folders('class0', 'class1')
  Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(root / 'class0' / '0.png')
  Image.fromarray(np.full((8, 8, 3), 255, np.uint8)).save(root / 'class0' / '1.png')
  given = [f'--workdir={trained.workdir}', f'--images={root}', f'--output={tmp_path / "found.json"}']
  blind(255)
  code, said = program(*given)
  assert code == 0, said
  lost = f'the network gives no finite logits for the image {root}/class0/1.png'
  assert f'skipped: {lost}' in said and re.match('3 images, .*, 1 skipped', said.splitlines()[-1])
  found = json.loads((tmp_path / 'found.json').read_text())
  assert found['unreadable'] == {f'{root}/class0/1.png': lost}
  assert len(found['predictions']) == sum(map(sum, found['confusion'])) == 3
  blind(0)
  code, said = program(*given)
  assert code == 2 and 'none of the 4 images' in said and 'no finite logits' in said.splitlines()[-1], said


@pytest.mark.parametrize('base', ['', 'test', 'Testing/Testing'])
def test_class_folders_are_labels(program, trained, labelled_folders, tmp_path, base):
  true = [0, 3, 5, 7]
  root = labelled_folders(*(os.path.join(base, f'class{index}') for index in true))
  (root / base / 'class3' / 'deep').mkdir()
  (root / base / 'class3' / '1.png').rename(root / base / 'class3' / 'deep' / '1.png')
  (root / base / 'class0' / '2.png').write_bytes(b'')
  code, said = program(f'--workdir={trained.workdir}', f'--images={root}', f'--output={tmp_path / "found.json"}')
  assert code == 0, said
  found = json.loads((tmp_path / 'found.json').read_text())
  paths = [each['image'] for each in found['predictions']]
  assert [each['true_class'] for each in found['predictions']] == [f'class{index}' for index in np.repeat(true, 2)]
  confusion = np.zeros((10, 10), int)
  np.add.at(confusion, (np.repeat(true, 2), expected(trained.workdir, paths).argmax(-1)), 1)
  assert found['confusion'] == confusion.tolist()
  assert found['accuracy'] == np.trace(confusion) / 8
  assert found['class_names'] == [f'class{index}' for index in range(10)]
  assert found['per_class']['examples'] == [2 * (index in true) for index in range(10)]
  assert f'accuracy {100 * found["accuracy"]:.2f} %' in said.splitlines()[-1]
  assert found['balanced_accuracy'] == pytest.approx(np.mean([confusion[label, label] / 2 for label in true]))
  assert re.search(r'(?m)^class3 +2 ', said), 'the results of each class'
  code, said = program(f'--workdir={trained.workdir}', f'--images={root}', f'--output={tmp_path / "found.csv"}')
  assert code == 0, said
  with (tmp_path / 'found.csv').open() as file:
    for row in csv.DictReader(file):
      assert row['image'].startswith(f'{root / base}/{row["true_class"]}/')


def test_the_images_of_val_are_listed_by_their_loss(program, tiny, saved, labelled_folders, tmp_path):
  root = labelled_folders('ant', 'bee', 'bee/deep', 'cow', 'cow/deep')
  tiny.data.update({'source': f'folder:{root}', 'val_fraction': 0.5, 'image_size': 8, 'workers': 0})
  tiny.eval.splits, tiny.checkpoint.best_metric = ('val',), 'accuracy'
  saved(tiny)
  workdir, output = tmp_path / 'run', tmp_path / 'val.csv'
  code, said = program(f'--workdir={workdir}', '--split=val', '--top=3', f'--output={output}')
  assert code == 0, said
  config = run_config.get_config(str(workdir / 'config.json'))
  with output.open() as file:
    rows = list(csv.DictReader(file))
  best = [row for row in rows if row['rank'] == '1']
  assert sorted(row['image'] for row in best) == sorted(datasets.load(config, ('val',)).evaluation['val'].store.paths)
  assert all(row['image'].startswith(f'{root}/{row["true_class"]}/') for row in best)
  chosen = [float(row['probability']) for row in rows if row['class'] == row['true_class']]  # of all three classes
  losses = [float(row['loss']) for row in best]
  np.testing.assert_allclose(losses, -np.log(chosen), rtol=1e-5)
  assert losses == sorted(losses, reverse=True)
  wanted = evaluate.evaluate(config, workdir)
  assert np.mean(losses) == pytest.approx(wanted['val/loss'], rel=1e-5)
  assert np.mean([row['class'] == row['true_class'] for row in best]) == wanted['val/accuracy']
  lines = said.splitlines()
  measured = [
    f'{name.replace("_", " ")} {100 * wanted[f"val/{name}"]:.2f} %' for name in ('accuracy', 'balanced_accuracy')
  ]
  by = f'by the newest checkpoint of step 7, {", ".join(measured)}'
  assert lines[-1] == f'{len(best)} images of val, {by}  {output}'
  assert any(
    re.match(rf'{re.escape(best[0]["image"])} +loss {losses[0]:.4f}  true: \w+  predicted: ', line) for line in lines
  )

  code, said = program(f'--workdir={workdir}', f'--images={root}')
  assert code == 0 and f'{10 - len(best)} of these 10 images are among those that the run was trained on' in said


def test_images_without_files_are_listed_by_their_index(program, trained, tmp_path):
  output = tmp_path / 'found.json'
  code, said = program(f'--workdir={trained.workdir}', '--split=test[10:40]', f'--output={output}')
  assert code == 0, said
  assert 'the other 10 images have smaller losses' in said
  found = json.loads(output.read_text())
  assert found['split'] == 'test[10:40]' and sorted(int(each['image']) for each in found['predictions']) == [*range(30)]
  assert sum(found['per_class']['examples']) == 30
  source = datasets.load(run_config.get_config(str(trained.workdir / 'config.json')), ('test',)).evaluation['test']
  for each in found['predictions']:
    assert each['true_class'] == f'class{source.labels[10 + int(each["image"])]}'


def test_images_beside_the_class_folders_have_no_label(program, trained, labelled_folders, tmp_path):
  root = labelled_folders('class0', 'class1')
  shutil.copy(root / 'class0' / '0.png', root / 'loose.png')
  code, said = program(f'--workdir={trained.workdir}', f'--images={root}')
  assert code == 0, said
  assert re.match('5 images.* accuracy .* without the 1 ', said.splitlines()[-1])


def test_a_folder_of_another_class_is_refused_and_a_glob_is_the_way_out(program, trained, labelled_folders):
  root = labelled_folders('class0', 'z_class1')
  code, said = program(f'--workdir={trained.workdir}', f'--images={root}')
  assert code == 2 and re.search('z_class1; missing: class1.* glob', said)
  code, said = program(f'--workdir={trained.workdir}', f'--images={root}/*/*.png')
  assert code == 0 and 'accuracy' not in said.splitlines()[-1]


def test_folders_that_are_no_classes_give_predictions_alone(program, trained, labelled_folders):
  root = labelled_folders('monday', 'tuesday')
  code, said = program(f'--workdir={trained.workdir}', f'--images={root}')
  assert code == 0, said
  assert said.splitlines()[-1].startswith('4 images') and 'accuracy' not in said.splitlines()[-1]
  assert any('monday, tuesday' in line and 'no accuracy' in line for line in said.splitlines())


def test_class_names_of_windows_programs(tmp_path):
  (tmp_path / 'names.txt').write_bytes(b'\xef\xbb\xbfcaf\xc3\xa9\r\nbee\r\n')
  assert predict.read_names(str(tmp_path / 'names.txt')) == ('café', 'bee')


def test_given_class_names_count(program, trained, labelled_folders, tmp_path):
  names = ['café', *(f'name {index}' for index in range(1, 10))]
  (tmp_path / 'names.txt').write_text('\n'.join(unicodedata.normalize('NFC', name) for name in names))
  root = labelled_folders(unicodedata.normalize('NFD', 'café'), 'name 3')
  given = [f'--workdir={trained.workdir}', f'--images={root}', f'--class_names={tmp_path / "names.txt"}']
  code, said = program(*given)
  assert code == 0, said
  assert 'accuracy' in said.splitlines()[-1]


@pytest.mark.parametrize(
  ('given', 'step', 'said'),
  [
    ([], 4, 'newest checkpoint of step 4, averaged'),
    (['--checkpoint=newest'], 4, 'newest checkpoint of step 4'),
    (['--checkpoint=last'], 4, 'last checkpoint of step 4'),
    (['--checkpoint=best'], 2, 'best checkpoint of step 2'),
    (['--checkpoint=2'], 2, 'the checkpoint of step 2'),
  ],
)
def test_the_checkpoint_is_chosen_and_named(program, two_checkpoints, folder_of_images, tmp_path, given, step, said):
  output = tmp_path / 'found.json'
  code, out = program(f'--workdir={two_checkpoints}', f'--images={folder_of_images}', f'--output={output}', *given)
  assert code == 0, out
  assert said in out.splitlines()[-1]
  assert json.loads(output.read_text())['step'] == step


INTERRUPTED = """
import os, signal, time
from dnt import cli, inference
from dnt.parallel import signals

whole, signals.GRACE = inference.predict, 0.2

def predict(*arguments):
  for number, batch in enumerate(whole(*arguments)):
    if number == 1:
      os.kill(os.getpid(), signal.SIGINT)
      time.sleep(1)  # the batch takes longer than a program gets that has nothing to save
    yield batch

inference.predict = predict

from dnt import predict as program

cli.run(program.PROGRAM)
"""


@pytest.mark.thorough
def test_an_interrupt_ends_the_batch_and_keeps_what_was_found(start, finish, trained, folder_of_images, tmp_path):
  output = tmp_path / 'found.csv'
  flags = [f'--workdir={trained.workdir}', f'--images={folder_of_images}', f'--output={output}', '--batch_size=2']
  said = finish(start([sys.executable, '-c', INTERRUPTED, *flags]), 130)
  assert re.fullmatch(f'3 .*1 skipped, .*stopped .*3  {re.escape(str(output))}', said.splitlines()[-1])
  with output.open() as file:
    found = [row['image'] for row in csv.DictReader(file)]
  assert found == [str(folder_of_images / f'{index}.png') for index in range(3) for _ in range(5)]


def test_bad_input_is_one_line(program, trained, folder_of_images, tmp_path):
  run, images = f'--workdir={trained.workdir}', f'--images={folder_of_images}'
  (tmp_path / 'two.txt').write_text('one\ntwo\n')
  (tmp_path / 'empty.txt').touch()
  (tmp_path / 'net.safetensors').touch()
  (tmp_path / 'folder.csv').mkdir()
  for arguments, said in (
    ([images, run, '--weights=tfjs:somewhere'], 'not both.* --workdir='),
    ([f'--workdir={folder_of_images}', images], f'{re.escape(str(folder_of_images))} .*no workdir'),
    ([run], '--images=.* --split='),
    ([run, images, '--split=test'], 'not both: --images=.* --split='),
    (['--weights=tfjs:x', '--split=test'], '--split .*--workdir, not --weights'),
    ([run, '--split=tset'], "'tset'; did you mean 'test'"),
    ([run, '--image=x'], "'image'"),
    ([run, images, '--top=0'], '--top'),
    ([run, images, '--output=found.txt'], r'found\.txt.* \.csv or \.json'),
    ([run, images, f'--output={tmp_path / "no" / "found.csv"}'], f'folder.* {re.escape(str(tmp_path / "no"))}'),
    ([run, images, f'--output={tmp_path / "folder.csv"}'], r'folder\.csv is a folder'),
    ([run, images, '--class_names=no.txt'], r'no\.txt'),
    ([run, images, '--checkpoint=bst'], "'bst'; did you mean 'best'.* 4, best, newest"),
    ([f'--weights={tmp_path}/net.safetensors', images, '--checkpoint=best'], "no workdir.* checkpoint 'best'"),
    ([run, images, '--checkpoint=3'], "'3'.* 4, best, newest"),
    ([run, images, f'--class_names={tmp_path / "two.txt"}'], r'two\.txt.* 2 names'),
    ([run, images, f'--class_names={tmp_path / "empty.txt"}'], r'empty\.txt.* 0 names'),
    ([run, f'--images={tmp_path / "*.gif"}'], r'no .* at .*\*\.gif'),
  ):
    code, output = program(*arguments)
    assert code == 2, (arguments, output)
    assert re.search(said, output)
    assert len(output.splitlines()) == 1 and output.startswith('error: '), output
  code, output = program(run, f'--images={folder_of_images / "5.png"}')
  assert code == 2
  skipped, error = output.splitlines()
  assert re.match(f'skipped: cannot read .*{re.escape(str(folder_of_images / "5.png"))} .*0 bytes', skipped)
  assert re.match(f'error: none of the 1 .*{re.escape(str(folder_of_images / "5.png"))}', error)


def test_an_output_that_cannot_be_written_is_refused_before_anything_is_read(refused, tmp_path, monkeypatch):
  monkeypatch.setattr('dnt.files.why_not_writable', lambda folder: 'Read-only file system')
  monkeypatch.setattr(inference, 'find', lambda text: pytest.fail('read before'))
  (tmp_path / 'config.json').write_text('{}')
  output = tmp_path / 'found.csv'
  line = refused(f'--workdir={tmp_path}', f'--images={tmp_path}', f'--output={output}', name='predict')
  assert line.startswith(f'error: --output={output} cannot be written (Read-only file system)')
