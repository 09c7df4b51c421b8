"""Images as a network takes them; what is predicted of them is tested with the program."""

import logging
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from dnt import errors, inference
from dnt.parallel import mesh as mesh_lib

pytestmark = pytest.mark.usefixtures('undrawn')


class Constant(NamedTuple):
  """A network with the same logits for each image."""

  logits: np.ndarray

  def apply(self, variables, images, train):
    return jnp.broadcast_to(self.logits, (len(images), len(self.logits)))


@pytest.mark.parametrize(('augment', 'resize'), [('resized_crop_flip', None), ('none', 'center_crop')])
def test_images_are_those_of_the_evaluation_bit_by_bit(tiny, scans, saved, augment, resize):
  tiny.data.update({'source': f'folder:{scans}', 'augment': augment, 'image_size': 8, 'workers': 0})
  with tiny.data.ignore_type():
    tiny.data.eval_resize = resize
  tiny.data.update({'mean': (0.4, 0.5, 0.6), 'std': (0.2, 0.3, 0.4)})
  tiny.eval.splits = ('val',)
  _, _, data = saved(tiny)
  found = inference.read(inference.load(str(scans.parent / 'run')), data.evaluation['val'].store.paths)
  assert found.paths == data.evaluation['val'].store.paths
  for path, original in zip(found.paths, found.images, strict=True):
    image = Image.open(path).convert('RGB')  # torchvision's Resize(8 / 0.875) and CenterCrop(8)
    short = min(image.size)
    image = image.resize([9 * side // short for side in image.size], Image.Resampling.BILINEAR)
    left, top = (round((side - 8) / 2) for side in image.size)
    np.testing.assert_array_equal(original, np.asarray(image.crop((left, top, left + 8, top + 8))))


@pytest.mark.parametrize('rotated', [False, True])
def test_images_are_turned_as_those_of_the_run(tiny, saved, scans, tmp_path, caplog, rotated):
  exif = Image.Exif()
  exif[0x0112] = 6
  pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
  Image.fromarray(pixels).save(tmp_path / 'turned.png', exif=exif)
  tiny.data.update({'source': f'folder:{scans}', 'image_size': 8, 'workers': 0, 'exif_rotation': rotated})
  tiny.data.update({'mean': (0.4, 0.5, 0.6), 'std': (0.2, 0.3, 0.4)})
  tiny.eval.splits = ('val',)
  saved(tiny)
  mesh = mesh_lib.make_mesh(tiny.mesh)
  network, paths = inference.load(tmp_path / 'run', mesh, checkpoint=7), [tmp_path / 'turned.png']
  (image,) = inference.read(network, paths).images
  np.testing.assert_array_equal(image, np.rot90(pixels, -1) if rotated else pixels)
  with caplog.at_level(logging.INFO, 'dnt'):
    (found,) = inference.predict(network, mesh, paths, 1, 1)
  assert found.paths == (str(paths[0]),) == inference.find(paths[0])
  assert not list(inference.predict(network, mesh, [], 1, 1))
  assert ('1 of 1 images have an EXIF orientation' in caplog.text) != rotated


@pytest.mark.parametrize(('bits', 'brightest', 'said'), [(16, 4095, True), (16, 2**15, False), (12, 4095, False)])
def test_a_line_says_if_16_bit_images_look_black(tiny, saved, tmp_path, caplog, bits, brightest, said):
  """The brightest image comes after as many as are looked at."""
  (tmp_path / 'deep').mkdir()
  for index in range(200):
    value = brightest if index >= 100 else 4000
    Image.fromarray(np.full((4, 4), value, np.uint16)).save(tmp_path / 'deep' / f'{index:03}.png')
  tiny.data.source = 'digits'
  saved(tiny)
  network = inference.load(tmp_path / 'run')
  assert network.config.data.image_bits == 16
  network.config.data.image_bits = bits
  with caplog.at_level(logging.INFO, 'dnt'):
    inference.say_reading(network, inference.find(tmp_path / 'deep'))
  assert [all(part in line for part in ('4,095', 'black', 'image_bits', 'by 16')) for line in caplog.messages] == [
    True
  ] * said


@pytest.mark.parametrize('cropped', [False, True])
def test_images_without_the_boxes_of_the_run_are_said_to_be_whole(tiny, saved, scans, tmp_path, caplog, cropped):
  saved(tiny)
  network = inference.load(tmp_path / 'run')
  network.config.data.crop_to_box = cropped
  with caplog.at_level(logging.INFO, 'dnt'):
    inference.say_reading(network, inference.find(scans))
  assert len(caplog.messages) == cropped
  assert ('config.data.crop_to_box' in caplog.text and 'whole' in caplog.text) == cropped


def test_classes_whose_probabilities_vanish_are_ranked_by_their_logits(tiny, saved, scans, tmp_path):
  tiny.data.source, tiny.data.image_size = 'digits', None
  saved(tiny)
  mesh = mesh_lib.make_mesh(tiny.mesh)
  network = inference.load(str(tmp_path / 'run'), mesh)
  logits = np.array([200.0, 50, 60, 70, 10, 0, -10, -20, -30, -40], np.float32)
  network = network._replace(model=Constant(logits))
  (found,) = inference.predict(network, mesh, [str(scans / 'cat' / '0.png')], 1, 4)
  assert found.indexes.tolist() == [[0, 3, 2, 1]]
  np.testing.assert_array_equal(found.probabilities, [[1, 0, 0, 0]])


def test_gray_networks_take_gray_images_and_what_cannot_be_read_is_named(tiny, saved, scans, tmp_path):
  tiny.data.source, tiny.data.image_size = 'digits', None
  saved(tiny)
  network = inference.load(str(tmp_path / 'run'))
  assert network.image_shape == (8, 8, 1)
  good = str(scans / 'cat' / '0.png')
  for name, content in (('empty.png', b''), ('text.jpg', b'not an image'), ('cut.png', b'\x89PNG\r\n\x1a\n')):
    (tmp_path / name).write_bytes(content)
  bad = [str(tmp_path / name) for name in ('empty.png', 'text.jpg', 'cut.png', 'absent.png')]
  found = inference.read(network, [bad[0], good, *bad[1:], good])
  assert found.paths == (good, good)
  gray = Image.open(good).convert('L').resize((8, 8), Image.Resampling.BILINEAR)
  np.testing.assert_array_equal(found.images[0, ..., 0], gray)
  assert list(found.unreadable) == bad
  for path, reason in found.unreadable.items():
    assert f'cannot read the image {path} (' in reason and '\n' not in reason
  assert inference.read(network, bad).images.shape == (0, 8, 8, 1)


def test_images_by_file_folder_and_glob(scans, tmp_path):
  (scans / 'notes.txt').write_text('')
  (scans / '.hidden.png').write_text('')
  every = tuple(sorted(str(path) for path in scans.glob('*/*.png')))
  assert inference.find(str(scans)) == inference.find(str(scans / '**' / '*.png')) == every
  assert inference.find(str(scans / '**' / '**' / '*.png')) == every, 'each once'
  assert inference.find(str(scans / 'cat')) == every[:6]
  assert inference.find(every[3]) == every[3:4]
  assert inference.find(str(scans / 'notes.txt')) == (str(scans / 'notes.txt'),), 'what is named is tried'
  (tmp_path / 'empty').mkdir()
  for text, said in ((tmp_path / 'empty', 'empty .*no '), (scans / '*.bmp', r'no .* at .*\*\.bmp')):
    with pytest.raises(errors.InputError, match=said):
      inference.find(str(text))
