"""Bad weights, images and choices of what trains, given to the program: one line, code 2, what was saved stays."""

import json
import pathlib
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from dnt import config as schema
from dnt import loop
from dnt.training import record
from tests.data import loading

pytestmark = pytest.mark.usefixtures('undrawn')
GIVEN = ('--config=digits_resnet20', '--config.train.batch_size=8', '--config.eval.batch_size=8')  # not that of the run
MLP = (*GIVEN, '--config.model.name=mlp', '--config.model.depth=3', '--config.model.width=16')
SYNTHETIC = ('--config.data.source=synthetic', '--config.data.synthetic_examples=16', '--config.data.image_size=8')
SYNTHETIC += ('--config.data.augment=none', '--config.data.synthetic_classes=2')
IMAGES = ('--config.data.image_size=8', '--config.data.mean=(0.5,0.5,0.5)', '--config.data.std=(0.5,0.5,0.5)')
IMAGES += ("--config.eval.splits=('val',)", '--config.data.augment=none', '--config.data.workers=0')
IMAGENET = ('--config.model.stem=imagenet', '--config.model.depth=18', *SYNTHETIC, '--config.data.image_size=32')
IMAGENET += GIVEN


def contents(folder):
  """Every file below a folder."""
  return {path.relative_to(folder): path.read_bytes() for path in folder.rglob('*') if path.is_file()}


def assert_matches(line, pattern):
  assert re.search(pattern, line), line


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  """The workdir of a run of two steps that trained the head of a small network."""
  config, workdir = schema.default(), tmp_path_factory.mktemp('finished')
  config.model.name, config.model.depth, config.model.width = 'mlp', 3, 16
  config.train.steps, config.train.batch_size, config.eval.batch_size, config.telemetry.every = 2, 8, 8, '0'
  config.data.update({'source': 'synthetic', 'synthetic_examples': 16, 'synthetic_classes': 2, 'image_size': 8})
  config.finetune.trainable, config.finetune.cached_views = 'head', 0
  loop.train(config, workdir, record.Clock(0.0), 'test')
  return workdir


@pytest.fixture
def workdir(finished, tmp_path):
  """A copy of it."""
  return pathlib.Path(shutil.copytree(finished, tmp_path / 'run'))


def partition(path):
  """A file without its last third."""
  content = path.read_bytes()
  path.write_bytes(content[: 2 * len(content) // 3])
  return path


def safetensors(save, described, folder):
  return partition(save({'fc.weight': np.zeros((1000, 8), np.float32)}))


def pickle(save, described, folder):
  return partition(save({'fc.weight': np.zeros((1000, 8), np.float32)}, 'model.pth'))


def h5(save, described, folder):
  h5py = pytest.importorskip('h5py')
  with h5py.File(folder / 'model.h5', 'w') as file:
    file['conv1/conv1/kernel:0'] = np.zeros((7, 7, 3, 64), np.float32)
  return partition(folder / 'model.h5')


def tfjs(save, described, folder):
  weights = [{'name': 'fc1000/kernel', 'shape': [8, 1000], 'dtype': 'float32'}]
  (folder / 'model.json').write_text(json.dumps({'weightsManifest': [{'paths': ['shard1.bin'], 'weights': weights}]}))
  (folder / 'shard1.bin').write_bytes(bytes(32_000))
  partition(folder / 'shard1.bin')
  return f'tfjs:{folder}'


def other_family(save, described, folder):
  return save({name: np.zeros((1,) * len(shape), np.float32) for name, (_, shape) in described('densenet').items()})


@pytest.mark.thorough
@pytest.mark.parametrize(
  ('make', 'said'),
  [
    (safetensors, r'model\.safetensors .*damaged.* get it again$'),
    (pickle, r'model\.pth .*damaged.* get it again$'),
    (h5, r'model\.h5 .*damaged.* get it again$'),
    (tfjs, r'damaged.*\b21,333 bytes .*shard1\.bin.* 32,000\b.* again$'),
    (other_family, r"config.model.name='densenet' \(now 'resnet'\), config.model.depth=121 \(now 18\)$"),
    (
      lambda save, described, folder: folder / 'absent.h5',
      r'nothing at .*absent\.h5 .*workdir',
    ),
  ],
)
def test_weights(refused, save, described, workdir, tmp_path, make, said):
  shutil.rmtree(workdir / 'checkpoints')  # with one the run would go on from there
  before = contents(workdir)
  weights = make(save, described, tmp_path)
  arguments = (*IMAGENET, f'--config.train.init_from={weights}')
  assert_matches(refused(f'--workdir={workdir}', *arguments), said)
  assert contents(workdir) == before


def test_code_in_weights_is_not_executed(refused, save, evil, workdir):
  shutil.rmtree(workdir / 'checkpoints')
  before, (code, mark) = contents(workdir), evil
  arguments = (*IMAGENET, f'--config.train.init_from={save({"fc.weight": code}, "model.pth")}')
  said = refused(f'--workdir={workdir}', *arguments)
  assert_matches(said, r'model\.pth .*nothing .*executed.* state_dict\(\)')
  assert not mark.exists()
  assert contents(workdir) == before


@pytest.mark.parametrize(
  ('chosen', 'said'),
  [
    ('top:99', r"'top:99' .*\b2$"),
    ('stage9/.*', r"'stage9/\.\*' .*'all', 'head' .*'top:<k>'.* stem, stage1/block001, head$"),
    ('(', r"config\.finetune\.trainable='\(' .*regular expression"),
  ],
)
def test_what_trains(refused, workdir, chosen, said):
  before = contents(workdir)
  arguments = (*MLP, *SYNTHETIC, f'--config.finetune.trainable={chosen}')
  assert_matches(refused(f'--workdir={workdir}', *arguments), said)
  assert contents(workdir) == before


def folders(root, names=('train/cat', 'train/dog', 'val/cat'), count=4):
  """Class folders of small images."""
  for name in names:
    (root / name).mkdir(parents=True)
    for index in range(count):
      Image.fromarray(np.full((9, 9, 3), 20 * index, np.uint8)).save(root / name / f'{index}.png')
  return root


def test_a_class_that_train_lacks(refused, workdir, tmp_path):
  root = folders(tmp_path / 'data', ('train/cat', 'train/dog', 'val/cat', 'val/cow'))
  before = contents(workdir)
  said = refused(f'--workdir={workdir}', *MLP, *IMAGES, f'--config.data.source=folder:{root}')
  assert_matches(said, r"data/val .*'cow'.* train/ .*cat, dog$")
  assert contents(workdir) == before


@pytest.mark.parametrize('where', ['train/dog', 'val/cat'])
@pytest.mark.parametrize(('content', 'reason'), [(b'', '0 bytes'), (b'<html>', 'no format')])
def test_an_image_that_cannot_be_read(refused, workdir, tmp_path, where, content, reason):
  """Found where frozen features are computed."""
  shutil.rmtree(workdir / 'checkpoints')  # with one other data is refused first
  path = folders(tmp_path / 'data') / where / '2.png'
  path.write_bytes(content)
  before = contents(workdir)
  arguments = (*MLP, *IMAGES, '--config.finetune.trainable=head', f'--config.finetune.cache_dir={tmp_path}/features')
  said = refused(f'--workdir={workdir}', *arguments, f'--config.data.source=folder:{tmp_path / "data"}')
  assert_matches(said, f'cannot read .*{path} .*{reason}.* remove it')
  assert contents(workdir) == before


def test_images_of_other_kinds_are_converted(program, tmp_path):
  """16 bits, CMYK and a palette, in a folder that is trained on: the values that the network gets."""
  root = folders(tmp_path / 'data')
  values = np.random.default_rng(0).integers(0, 2**16, (9, 9), np.uint16)
  colors = np.random.default_rng(1).integers(0, 256, (9, 9, 3), np.uint8)
  cmyk, palette = Image.fromarray(colors).convert('CMYK'), Image.fromarray(colors).quantize(16)
  Image.fromarray(values).save(root / 'train' / 'cat' / 'deep.png')
  cmyk.save(root / 'train' / 'cat' / 'cmyk.tif')
  palette.save(root / 'train' / 'dog' / 'palette.gif')

  data = schema.default().data
  data.source = f'folder:{root}'
  source = loading.load(data, 'train', 0)
  found = {pathlib.Path(path).name: source[index][0] for index, path in enumerate(source.store.paths)}
  np.testing.assert_array_equal(found['deep.png'], np.repeat((values >> 8)[..., None], 3, -1))
  inks = np.asarray(cmyk).astype(int)
  np.testing.assert_allclose(found['cmyk.tif'], (255 - inks[..., :3]) * (255 - inks[..., 3:]) / 255, atol=1)
  table = np.reshape(palette.getpalette(), (-1, 3))
  np.testing.assert_array_equal(found['palette.gif'], table[np.asarray(palette)])

  arguments = (*MLP, *IMAGES, f'--config.data.source=folder:{root}', '--config.train.steps=2')
  code, _, error = program(f'--workdir={tmp_path / "run"}', *arguments)
  assert code == 0, error
