"""What is written of images and of a split, beside brute force; and what is refused."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from dnt import errors, files, inference
from dnt.config import run_config
from dnt.explanation import cam, report, sheet, top_activating

pytestmark = pytest.mark.usefixtures('undrawn')
CHANNELS = 64
WANTED = report.Wanted(None, 'grad_cam', None, None, None, 3)


@pytest.fixture
def run(trained):
  return trained.workdir


@pytest.fixture
def images(tmp_path):
  """A folder of three images and one file that is none."""
  folder = tmp_path / 'images'
  folder.mkdir()
  draw = np.random.default_rng(0)
  for index in range(3):
    Image.fromarray(draw.integers(0, 256, (10, 9, 3), np.uint8)).save(folder / f'{index}.png')
  (folder / '1.jpg').write_bytes(b'no image')
  return folder


@pytest.mark.thorough
def test_images_and_their_figures_are_written(run, images, tmp_path, console):
  wanted = WANTED._replace(images=str(images), target='class2')
  said = report.run(str(run), wanted, tmp_path / 'out')
  found = json.loads((tmp_path / 'out' / 'explain.json').read_text())
  assert (found['network'], found['step'], found['entry'], found['method']) == (
    str(run),
    4,
    'stage3/block001',
    'grad_cam',
  )
  assert [each['path'] for each in found['images']] == [str(images / f'{index}.png') for index in range(3)]
  assert list(found['unreadable']) == [str(images / '1.jpg')]
  assert f'skipped: {found["unreadable"][str(images / "1.jpg")]}' in console.readouterr().out
  network = inference.load(str(run))
  read = inference.read(network, [each['path'] for each in found['images']])
  logits = network.model.apply(network.variables, network.preprocess(jnp.asarray(read.images)), train=False)
  for each, probabilities in zip(found['images'], np.asarray(jax.nn.softmax(logits)), strict=True):
    assert (each['prediction'], each['target']) == (f'class{probabilities.argmax()}', 'class2')
    assert each['probability'] == pytest.approx(probabilities.max(), rel=1e-5)
    assert each['target_probability'] == pytest.approx(probabilities[2], rel=1e-5)
    assert (tmp_path / 'out' / each['overlay']).is_file()
    assert all(0 <= each[name] <= 1 for name in report.AREAS)
  for name, mean in found['means'].items():
    assert mean == pytest.approx(np.mean([each[name] for each in found['images']]))
  means = found['means']
  assert re.match(rf'3 .*deletion {means["deletion"]:.3f} .*{means["random_deletion"]:.3f}\b', said)
  page = (tmp_path / 'out' / 'explain.html').read_text()
  assert 'src="data:image/png' in page and 'http' not in page
  assert all(text in page for text in ('2.png', 'class2', '1.jpg', report.MEANING['insertion'].split('(')[0]))
  assert (tmp_path / 'out' / 'explained.png').is_file()


def test_maps_that_are_zero_everywhere_are_named(run, images, tmp_path, monkeypatch, caplog):
  load = inference.load

  def change(path, x):
    return x.at[..., 2].set(-1.0) if 'head' in str(path) else x

  def against_class2(*args):
    network = load(*args)
    return network._replace(variables=jax.tree.map_with_path(change, network.variables))

  monkeypatch.setattr(inference, 'load', against_class2)
  report.run(str(run), WANTED._replace(images=str(images), target='class2'), tmp_path / 'out')
  assert 'map of 3 of 3 images is zero everywhere' in caplog.text and '--method' in caplog.text
  for each in json.loads((tmp_path / 'out' / 'explain.json').read_text())['images']:
    assert each['peak'] == 0 and each['deletion'] == each['random_deletion']
  caplog.clear()
  report.run(str(run), WANTED._replace(images=str(images), target='class3'), tmp_path / 'out')
  assert 'zero everywhere' not in caplog.text


def test_a_split_is_searched(run, tmp_path, monkeypatch):
  from dnt.training import datasets

  sheets = []
  monkeypatch.setattr(sheet, 'grid', lambda title, rows: sheets.append(rows))
  said = report.run(str(run), WANTED._replace(top_activating='test[:30]'), tmp_path / 'out')
  assert re.search(r'\b30 .* test\[:30\]; by the newest .*step 4, averaged weights$', said)
  found = json.loads((tmp_path / 'out' / 'explain.json').read_text())['top_activating']
  source = datasets.load(run_config.get_config(str(run / 'config.json')), ('test[:30]',)).evaluation['test[:30]']
  network = inference.load(str(run))
  images = network.preprocess(jnp.asarray(source.images))
  entry = cam.choose(network.table, None)
  logits, activations = jax.jit(lambda x: cam.outputs(network.model, entry, network.variables, x))(images)
  peaks, probabilities = np.asarray(activations).max((1, 2)), np.asarray(jax.nn.softmax(logits))
  assert (found['split'], found['examples']) == ('test[:30]', 30)
  assert [each['channel'] for each in found['channels']] == list(range(CHANNELS))
  assert [each['class'] for each in found['classes']] == [f'class{index}' for index in range(10)]
  for rows, name, scores in (
    (found['channels'], 'activations', peaks),
    (found['classes'], 'probabilities', probabilities),
  ):
    for each, values in zip(rows, scores.T, strict=True):
      np.testing.assert_allclose(each[name], np.sort(values)[::-1][:3], rtol=1e-4)
      np.testing.assert_allclose(values[each['images']], each[name], rtol=1e-4)
  for place, each in found['images'].items():
    assert each == {'class': f'class{source.labels[int(place)]}'}
  assert all((tmp_path / 'out' / f'top_activating_{name}.png').is_file() for name in ('channels', 'classes'))
  # The sheets show those with the highest peaks, and where a channel is positive.
  for rows, name, scores, title in (
    (sheets[0], 'channels', peaks, lambda each: f'channel {each["channel"]}: {each["activations"][0]:.3g}'),
    (sheets[1], 'classes', probabilities, lambda each: f'{each["class"]}: {100 * each["probabilities"][0]:.2f} %'),
  ):
    highest = np.argsort(-scores.max(0), kind='stable')[: top_activating.DRAWN]
    places = [found[name][index]['images'][0] for index in highest]
    for row, index, place in zip(rows, highest, places, strict=True):
      assert row[0].title == f'{title(found[name][index])}\ntrue: class{source.labels[place]}'
      np.testing.assert_array_equal(row[0].image, source.images[place])
    if name == 'channels':
      heats = cam.upsample(np.maximum(np.asarray(activations)[places, ..., highest], 0), (8, 8))
      shown = np.stack([row[0].map for row in rows])
      np.testing.assert_allclose(shown, heats, rtol=1e-3, atol=1e-4 * float(heats.max()))


@pytest.mark.parametrize(
  ('change', 'said'),
  [
    ({'entry': 'stm'}, "entry 'stm'.* 'stem'"),
    ({'entry': 'head'}, r"'head' .*\b10 "),
    ({'target': 'class33'}, "class 'class33'.* 'class3'"),
    ({'images': 'nowhere/*.png'}, "no .* at 'nowhere/"),
    ({'images': None, 'top_activating': 'tset'}, "split of synthetic 'tset'.* 'test'"),
  ],
)
def test_what_cannot_be_explained_is_refused_before_anything_is_written(run, images, tmp_path, change, said):
  with pytest.raises(errors.InputError, match=said):
    report.run(str(run), WANTED._replace(images=str(images))._replace(**change), tmp_path / 'out')
  assert not (tmp_path / 'out').exists()


def test_the_overlay_of_a_long_name_has_as_much_of_it_as_fits(tmp_path):
  assert report.overlay_name(1, 'scan') == 'overlay_001_scan.png'
  name = 'x' + 'é' * 125  # 251 bytes, cut within a character
  (tmp_path / f'{name}.png').touch()
  shown = report.overlay_name(12_345, name)
  assert shown == f'overlay_12345_{name[:100]}.png'
  files.write(tmp_path / shown, b'')


def test_images_none_of_which_can_be_read_are_refused(run, images, tmp_path):
  with pytest.raises(errors.InputError, match=f'none of the 1 .*{re.escape(str(images / "1.jpg"))}'):
    report.run(str(run), WANTED._replace(images=str(images / '1.jpg')), tmp_path / 'out')


def test_a_folder_that_cannot_be_written_is_refused(run, images):
  with pytest.raises(errors.InputError, match=r'1\.jpg .*written.* --output'):
    report.run(str(run), WANTED._replace(images=str(images)), images / '1.jpg')


@pytest.mark.parametrize(
  ('key', 'value', 'said'),
  [('synthetic_classes', 12, 'other classes .*class10'), ('image_size', 9, 'another data set')],
)
def test_data_that_has_become_other_is_refused(trained_copy, tmp_path, key, value, said):
  run = trained_copy.workdir
  config = json.loads((run / 'config.json').read_text())
  config['data'][key] = value
  (run / 'config.json').write_text(json.dumps(config))
  with pytest.raises(errors.InputError, match=f'synthetic .*{said}'):
    report.run(str(run), WANTED._replace(top_activating='test'), tmp_path / 'out')
