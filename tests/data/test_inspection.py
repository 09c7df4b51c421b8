"""What a look at image files finds before a run."""

import logging
from concurrent import futures

import numpy as np
import pytest
from PIL import Image

from dnt import errors
from dnt.data import inspection
from tests.data import loading


@pytest.fixture
def write(tmp_path, make_image):
  """`write('a.jpg', orientation=6)`: an image file; returns its path."""

  def make(name, orientation=1, **options):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(make_image(40, 50)).save(tmp_path / name, exif=exif, **options)
    return tmp_path / name

  return make


def look(*paths):
  return inspection.look([str(path) for path in paths])


CUT = ['a.jpg', 'a.png', 'a.gif', 'a.webp', 'a.jp2']


@pytest.mark.parametrize('name', [*CUT, 'a.tif', 'a.bmp', 'a.ppm', 'a.pcx', 'a.qoi'])
def test_a_whole_file_is_not_suspect(write, name):
  path = write(name) if name != 'a.gif' else write(name, save_all=True)
  assert look(path) == inspection.Seen(1, 0, look(path).deep, ())


@pytest.mark.parametrize('name', CUT)
@pytest.mark.parametrize('left', [0.5, 0.95, 0])
def test_a_file_that_is_cut_off_is_found(write, name, left):
  path = write(name)
  path.write_bytes(path.read_bytes()[: int(left * path.stat().st_size)])
  assert look(path).suspects == (str(path),)
  (message,) = inspection.damaged([str(path)])
  assert str(path) in message


def test_files_that_decode_are_not_damaged(write, tmp_path):
  """What other programs append is not damage; no image at all is."""
  for name in ('a.jpg', 'a.png'):
    path = write(name)
    path.write_bytes(path.read_bytes() + bytes(1000))
  (tmp_path / 'b.jpg').write_text('<html>')
  seen = look(tmp_path / 'a.jpg', tmp_path / 'a.png', tmp_path / 'b.jpg', tmp_path / 'absent.jpg')
  assert [message.split()[4] for message in inspection.damaged(seen.suspects)] == [
    str(tmp_path / 'b.jpg'),
    str(tmp_path / 'absent.jpg'),
  ]


@pytest.mark.parametrize('name', ['a.jpg', 'a.png', 'a.webp'])
@pytest.mark.parametrize('orientation', range(1, 9))
def test_an_orientation_is_counted(write, name, orientation):
  assert look(write(name, orientation)).rotated == (orientation != 1)


def test_an_orientation_after_other_metadata_is_counted(write, tmp_path):
  path = write('a.jpg', 6, icc_profile=bytes(3000), comment=bytes(3000))
  assert look(path).rotated == 1
  exif = Image.Exif()
  exif.endian, exif[0x010F], exif[0x0112] = '>', 'a camera', 8
  Image.new('RGB', (9, 9)).save(tmp_path / 'b.jpg', exif=exif)
  assert look(tmp_path / 'b.jpg').rotated == 1


def test_a_look_ends_after_its_seconds(write, monkeypatch):
  path = write('a.jpg', 6)
  monkeypatch.setattr(inspection, 'SECONDS', -1.0)
  assert 0 < look(*[path] * 1000).looked < 1000
  path.write_bytes(path.read_bytes()[:-200])
  assert 0 < len(inspection.damaged([str(path)] * 100)) < 100
  monkeypatch.setattr(inspection, 'SECONDS', 60.0)
  assert look(*[path] * 1000).looked == 1000


def test_a_look_at_many_files_prepares_no_more_of_them_than_it_reads(monkeypatch):
  submitted, submit = [], futures.ThreadPoolExecutor.submit

  def count(pool, *given):
    submitted.append(given)
    return submit(pool, *given)

  monkeypatch.setattr(futures.ThreadPoolExecutor, 'submit', count)
  monkeypatch.setattr(inspection, 'SECONDS', -1.0)
  assert inspection.look(['absent.jpg'] * 100_000).looked >= 64
  assert len(submitted) < 100  # of more than 1,500 blocks


@pytest.mark.parametrize(
  ('bits', 'sbit', 'scaled', 'declared', 'fitting'),
  [
    (12, None, 1, None, 12),
    (10, None, 1, None, 10),
    (8, None, 1, None, 8),
    (16, None, 1, None, None),
    (14, None, 1, None, None),
    (12, 12, 1, 12, 12),
    (14, 14, 1, 14, 14),
    (12, 12, 16, None, None),  # scaled, as the standard wants it
    (5, 5, 1, 8, 8),
  ],
)
@pytest.mark.parametrize('shape', [(6, 5), (6, 5, 3)])
def test_the_bits_of_16_bit_images(deep_png, tmp_path, bits, sbit, scaled, declared, fitting, shape):
  for index in range(4):
    values = np.random.default_rng(index).integers(0, 2**bits // (1 if index == 3 else 2), shape)
    values[0] = 2**bits - 1 if index == 3 else 0
    (tmp_path / f'{index}.png').write_bytes(deep_png(values * scaled, sbit))
  depth = inspection.measure_depth(look(*sorted(tmp_path.glob('*.png'))).deep)
  assert (depth.declared, depth.fitting) == (declared, fitting)
  assert depth.largest == 2**bits - 1 if fitting else depth.largest > 2**12


def test_images_of_8_bits_have_no_depth(write, tmp_path):
  assert inspection.measure_depth(look(*map(write, ('a.jpg', 'a.png', 'a.tif', 'a.ppm', 'a.jp2'))).deep) is None


@pytest.fixture
def splits(data, class_folders):
  """`splits()`: loads train and val of a folder; `root` is its place."""
  root = class_folders({'train/ant': 3, 'train/bee': 3, 'val/ant': 2, 'val/bee': 2})
  data.source = f'folder:{root}'

  def load():
    return {split: loading.load(data, split, 0) for split in ('train', 'val')}

  load.root = root
  return load


def check(splits, data, caplog, evaluated=('val',)):
  caplog.clear()
  loaded = splits()
  caplog.clear()
  with caplog.at_level(logging.INFO, 'dnt'):
    bits = inspection.check(loaded, evaluated, data)
  return bits, [record.getMessage() for record in caplog.records]


def test_damaged_files_of_evaluated_splits_are_an_error(splits, data, caplog):
  assert check(splits, data, caplog) == (None, [])
  for name in ('train/ant/0.jpg', 'val/ant/1.jpg', 'val/bee/0.jpg'):
    (splits.root / name).write_bytes((splits.root / name).read_bytes()[:-100])
  with pytest.raises(errors.InputError, match=r'cannot read') as error:
    check(splits, data, caplog)
  assert 'val/ant/1.jpg' in str(error.value) and 'val/bee/0.jpg' in str(error.value)
  assert 'train/' not in str(error.value)
  check(splits, data, caplog, evaluated=())


def test_a_line_names_the_option_of_rotation(splits, data, caplog):
  exif = Image.Exif()
  exif[0x0112] = 3
  for name in ('train/ant/0.jpg', 'train/bee/0.jpg', 'val/ant/0.jpg'):
    Image.open(splits.root / name).save(splits.root / name, exif=exif)
  _, (train, val) = check(splits, data, caplog)
  assert 'train: 2 of 6 ' in train and 'val: 1 of 4 ' in val
  assert 'EXIF' in train and 'config.data.exif_rotation' in train
  data.exif_rotation = True
  assert check(splits, data, caplog)[1] == []


def test_the_bits_do_not_depend_on_the_time_that_a_look_takes(deep_png, tmp_path, monkeypatch):
  paths = [tmp_path / f'{index}.png' for index in range(120)]
  for index, path in enumerate(paths):
    path.write_bytes(deep_png(np.full((4, 4), index, np.uint16), sbit=None if index == 100 else 12))
  found = []
  for seconds in (-1.0, 60.0):
    monkeypatch.setattr(inspection, 'SECONDS', seconds)
    found.append(inspection.measure_depth(look(*paths).deep))
  assert found == [inspection.Depth(12, 8, 63, 64)] * 2


@pytest.mark.parametrize('sbit', [None, 12])
def test_the_line_of_the_bits_is_there_when_a_run_has_recorded_that_it_reads_16(splits, data, caplog, deep_png, sbit):
  for folder in ('train/ant', 'val/bee'):
    (splits.root / folder / 'deep.png').write_bytes(deep_png(np.full((9, 9), 2**12 - 1), sbit))
  with data.ignore_type():
    data.image_bits = 16
  bits, lines = check(splits, data, caplog)
  assert bits is None, 'the option is set'
  assert [line.partition(':')[0] for line in lines] == ['train', 'val']
  assert all('look black' in line and 'config.data.image_bits=12' in line for line in lines)


@pytest.mark.parametrize('sbit', [None, 12])
def test_a_line_names_the_option_of_the_bits(splits, data, caplog, deep_png, sbit):
  for index, folder in enumerate(('train/ant', 'train/bee', 'val/ant', 'val/bee')):
    values = np.random.default_rng(index).integers(2000, 2**12, (9, 9))
    (splits.root / folder / 'deep.png').write_bytes(deep_png(values, sbit))
  bits, lines = check(splits, data, caplog)
  assert bits == sbit
  assert len(lines) == (1 if sbit else 2)
  assert all('config.data.image_bits=12' in line for line in lines)
  with data.ignore_type():
    data.image_bits = 12
  assert check(splits, data, caplog) == (None, [])
  (splits.root / 'val/ant/bright.png').write_bytes(deep_png(np.full((9, 9), 2**15)))
  with data.ignore_type():
    data.image_bits = None
  bits, lines = check(splits, data, caplog)
  assert bits == sbit and len(lines) == 1, 'the training split decides; val is not dark'
