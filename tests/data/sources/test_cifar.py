import os
import pathlib

import numpy as np
import pytest

from dnt import errors
from dnt.data.sources import cifar
from tests.data import loading

TEN, HUNDRED = cifar.FORMATS


@pytest.fixture(autouse=True)
def few_records(monkeypatch):
  """Files of 4 records instead of 10,000 or 50,000."""
  small = [form._replace(records={'train': 4, 'test': 4}) for form in cifar.FORMATS]
  monkeypatch.setattr(cifar, 'FORMATS', tuple(small))


def write(folder, form):
  """Official files of `form` with 4 records each; returns pixels and labels by file."""
  generator = np.random.default_rng(0)
  folder.mkdir(parents=True)
  written = {}
  for name in [name for names in form.files.values() for name in names]:
    pixels = generator.integers(0, 256, (4, 3, 32, 32), np.uint8)
    labels = generator.integers(0, form.classes, 4).astype(np.uint8)
    coarse = np.full(4, 7, np.uint8)
    columns = [labels] if form.label_bytes == 1 else [coarse, labels]
    (folder / name).write_bytes(np.column_stack([*columns, pixels.reshape(4, -1)]).tobytes())
    written[name] = pixels, labels
  (folder / form.names).write_text(''.join(f'name{i}\n' for i in range(form.classes)) + '\n')
  return written


@pytest.mark.parametrize('form', [TEN, HUNDRED])
@pytest.mark.parametrize('above', [False, True])
def test_records_are_images_with_their_labels(data, tmp_path, form, above):
  written = write(tmp_path / form.folder, form)
  data.source = f'cifar_binary:{tmp_path if above else tmp_path / form.folder}'

  for split, names in form.files.items():
    read = loading.load(data, split, 0)
    pixels = np.concatenate([written[name][0] for name in names])
    np.testing.assert_array_equal(read.images, np.moveaxis(pixels, 1, -1))
    np.testing.assert_array_equal(read.labels, np.concatenate([written[name][1] for name in names]))
    assert read.class_names == tuple(f'name{i}' for i in range(form.classes))
    assert read.shape == (32, 32, 3)


def test_a_truncated_file_is_refused_with_its_sizes(data, tmp_path):
  write(tmp_path / 'c', TEN)
  path = tmp_path / 'c' / 'data_batch_3.bin'
  path.write_bytes(path.read_bytes()[:-5])
  data.source = f'cifar_binary:{tmp_path / "c"}'

  with pytest.raises(errors.InputError, match=r'data_batch_3\.bin .*12287 bytes.* 12292'):
    loading.load(data, 'train', 0)
  assert len(loading.load(data, 'test', 0)) == 4


def test_the_official_files_have_the_official_sizes():
  assert TEN.records['train'] * (TEN.label_bytes + cifar.PIXELS) == 30_730_000
  assert HUNDRED.records['train'] * (HUNDRED.label_bytes + cifar.PIXELS) == 153_700_000
  assert HUNDRED.records['test'] * (HUNDRED.label_bytes + cifar.PIXELS) == 30_740_000


def test_a_label_out_of_range_is_refused(data, tmp_path):
  write(tmp_path / 'c', TEN)
  path = tmp_path / 'c' / 'test_batch.bin'
  path.write_bytes(b'\x0a' + path.read_bytes()[1:])
  data.source = f'cifar_binary:{tmp_path / "c"}'

  with pytest.raises(errors.InputError, match=r'test_batch\.bin .*label 10\b.* 0 to 9'):
    loading.load(data, 'test', 0)


def test_missing_files_are_named(data, tmp_path):
  data.source = f'cifar_binary:{tmp_path / "none"}'
  with pytest.raises(errors.InputError, match=r'exist.* data_batch_1\.bin .*train\.bin'):
    loading.load(data, 'train', 0)

  data.source = f'cifar_binary:{tmp_path}'
  with pytest.raises(errors.InputError, match=r'none of data_batch_1\.bin'):
    loading.load(data, 'train', 0)

  write(tmp_path / TEN.folder, TEN)
  (tmp_path / TEN.folder / 'data_batch_2.bin').unlink()
  (tmp_path / TEN.folder / 'batches.meta.txt').unlink()
  with pytest.raises(errors.InputError, match=r'lacks data_batch_2\.bin, batches\.meta\.txt'):
    loading.load(data, 'train', 0)


def test_a_folder_with_both_sets_is_ambiguous(data, tmp_path):
  write(tmp_path / TEN.folder, TEN)
  write(tmp_path / HUNDRED.folder, HUNDRED)
  data.source = f'cifar_binary:{tmp_path}'

  with pytest.raises(errors.InputError, match=f'both .*{TEN.folder}.*{HUNDRED.folder}'):
    loading.load(data, 'train', 0)


@pytest.mark.slow
def test_the_official_files_are_read(data, monkeypatch):
  """Channel statistics and class counts that everyone knows, on the real files."""
  monkeypatch.setattr(cifar, 'FORMATS', (TEN, HUNDRED))
  folder = os.environ.get('DNT_CIFAR10_DIR')
  if not folder or not pathlib.Path(folder).is_dir():
    pytest.skip('DNT_CIFAR10_DIR does not name a folder with the official CIFAR-10 binary files')
  data.source = f'cifar_binary:{folder}'
  train = loading.load(data, 'train', 0)

  np.testing.assert_array_equal(np.bincount(train.labels), [5000] * 10)
  np.testing.assert_allclose(train.images.mean((0, 1, 2)) / 255, [0.4914, 0.4822, 0.4465], atol=5e-5)
  assert train.class_names[3] == 'cat'
  assert len(loading.load(data, 'test', 0)) == 10_000
