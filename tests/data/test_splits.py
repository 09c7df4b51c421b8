import re

import pytest

from dnt import errors
from dnt.data import splits


@pytest.mark.parametrize(
  'text',
  [
    'train',
    'train[:98%]',
    'train[98%:]',
    'train[100:]',
    'train[:100]',
    'train[-10%:]',
    'train[:-10%]',
    'train[-100:-50]',
    'train[12.5%:37.5%]',
    'train[33%:34%]',
    'train[10:20%]',
    'train[0:50]',
  ],
)
@pytest.mark.parametrize('count', [150, 1437, 50_000])
def test_bounds_are_those_of_tfds(text, count):
  core = pytest.importorskip('tensorflow_datasets').core
  template = core.naming.ShardedFileTemplate('/x', dataset_name='d', split='train')
  info = core.SplitInfo(name='train', shard_lengths=[count], num_bytes=0, filename_template=template)
  absolute = core.ReadInstruction.from_spec(text).to_absolute({'train': info})[0]
  expected = (absolute.from_ or 0, count if absolute.to is None else absolute.to)

  assert splits.parse(text).bounds(count) == expected


@pytest.mark.parametrize('text', ['', 'train[', 'train[:]', 'train[]', 'train[5]', 'train[:x]', 'train[1.5:]', 'a+b'])
def test_other_forms_are_refused(text):
  with pytest.raises(errors.InputError, match=re.escape(repr(text))):
    splits.parse(text)


@pytest.mark.parametrize(
  ('first', 'second', 'shared'),
  [
    ('train', 'train[:10%]', True),
    ('train', 'val', False),
    ('train[:90%]', 'train[90%:]', False),
    ('train[:90%]', 'train[-10%:]', False),
    ('train[:93%]', 'train[-7%:]', False),
    ('train[:90%]', 'train[85%:]', True),
    ('train[:45000]', 'train[45000:]', False),
    ('train[:45000]', 'train[-5000:]', False),
    ('train[:-5000]', 'train[-5000:]', False),
    ('train[:-5000]', 'train[-6000:]', True),
    ('train[10:20]', 'train[15:16]', True),
    ('train[:5000]', 'train[5%:]', True),
    ('all', 'train', True),
    ('val[:10%]', 'all[90%:]', True),
    ('all', 'test', False),
    ('all[:90%]', 'all[90%:]', False),
    ('validation', 'val', True),
    ('valid[:50%]', 'val[50%:]', False),
    ('validation', 'train', False),
  ],
)
def test_slices_that_share_examples(first, second, shared):
  first, second = splits.parse(first), splits.parse(second)
  assert first.overlaps(second) is second.overlaps(first) is shared


@pytest.mark.parametrize('text', ['train[50:50]', 'train[60%:40%]', 'train[:0]'])
def test_an_empty_slice_is_refused(text):
  with pytest.raises(errors.InputError, match='holds no examples'):
    splits.parse(text).bounds(100)


@pytest.mark.parametrize('text', ['train[:101]', 'train[-101:]', 'train[:110%]'])
def test_bounds_beyond_the_split_are_refused(text):
  with pytest.raises(errors.InputError, match="beyond the 100 examples of 'train'"):
    splits.parse(text).bounds(100)
