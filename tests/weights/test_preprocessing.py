import json

import pytest

from dnt import config as schema
from dnt import errors
from dnt.weights import preprocessing

# Of timm/resnet50.a1_in1k, what of it is read.
A1 = {
  'architecture': 'resnet50',
  'num_classes': 1000,
  'pretrained_cfg': {
    'tag': 'a1_in1k',
    'input_size': [3, 224, 224],
    'test_input_size': [3, 288, 288],
    'interpolation': 'bicubic',
    'crop_pct': 0.95,
    'test_crop_pct': 1.0,
    'crop_mode': 'center',
    'mean': [0.485, 0.456, 0.406],
    'std': [0.229, 0.224, 0.225],
  },
}


@pytest.fixture
def timm(tmp_path):
  def read(content, encoding='utf-8'):
    path = tmp_path / 'config.json'
    if content is not None:
      path.write_text(content if isinstance(content, str) else json.dumps(content), encoding)
    return preprocessing.TimmConfig(path)

  return read


def test_what_timm_says(timm):
  found = timm(A1).preprocessing
  assert not timm(A1).assumed
  assert found == preprocessing.Preprocessing(
    224, 0.95, 'bicubic', (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 'center_crop'
  )
  assert timm({**A1, 'label_names': ['a', 'b']}).class_names == ('a', 'b')
  assert timm(A1, 'utf-8-sig').preprocessing == found


@pytest.mark.parametrize(
  ('named', 'names'),
  [
    ({'label_names': {'1': 'b', '0': 'a'}}, ('a', 'b')),
    ({'label_names': {str(n): f'c{n}' for n in (10, *range(10))}}, tuple(f'c{n}' for n in range(11))),
    ({'pretrained_cfg': {'label_names': ['c', 'd']}}, ('c', 'd')),
    ({'pretrained_cfg': {'label_names': {'1': 'd', '0': 'c'}}, 'label_names': None, 'num_classes': 2}, ('c', 'd')),
    ({'pretrained_cfg': {'label_names': ['c', 'd']}, 'label_names': ['a', 'b']}, ('a', 'b')),
    ({'pretrained_cfg': {'label_names': ['c', 'd']}, 'num_classes': 3}, ()),  # of what it was trained from
    ({'pretrained_cfg': {'labels': ['c', 'd'], 'label_names': ['a', 'b']}}, ('a', 'b')),
    ({'architecture': 'resnet18', 'num_classes': 2, 'labels': ['a', 'b']}, ('a', 'b')),  # without sections
    ({'label_names': [0, 1]}, ('0', '1')),
    ({'label_names': 'ab'}, ()),
  ],
)
def test_names_of_classes_are_where_timm_keeps_them(timm, named, names):
  assert timm(named if 'architecture' in named else {'pretrained_cfg': {}, **named}).class_names == names


@pytest.mark.parametrize('keys', [('0', '2'), ('1', '2'), ('n01', 'n02'), ('0', '00')])
def test_names_of_classes_with_gaps_are_not_used_and_this_is_said(timm, console, keys):
  found = timm({**A1, 'label_names': dict.fromkeys(keys, 'a')})
  assert found.class_names == ()
  assert 'config.json: label_names are not used' in console.readouterr().out


@pytest.mark.parametrize('content', [None, {'architectures': ['ResNetForImageClassification']}, [1]])
def test_without_timms_file_it_is_torchvisions(timm, content):
  found = timm(content)
  assert found.assumed == tuple(preprocessing._FIELDS) and found.preprocessing == preprocessing.IMAGENET
  assert found.class_names == ()


@pytest.mark.parametrize('cfg', [{}, {'interpolation': None, 'mean': None, 'std': None, 'crop_pct': None}])
def test_what_timms_file_lacks_has_timms_default(timm, cfg):
  expected = (224, 0.875, 'bicubic', (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 'center_crop')
  assert timm({'pretrained_cfg': cfg}).preprocessing == preprocessing.Preprocessing(*expected)


@pytest.mark.parametrize(
  ('content', 'said'),
  [
    ('{', 'cannot read .*config.json'),
    ({'pretrained_cfg': {'input_size': 3}}, 'pretrained_cfg .*damaged'),
    ({'pretrained_cfg': {'mean': 'red'}}, 'pretrained_cfg .*damaged'),
    ({'pretrained_cfg': {'interpolation': 'bicubical'}}, "'bicubical'.* 'bicubic'"),
  ],
)
def test_what_makes_no_sense_is_refused(timm, content, said):
  with pytest.raises(errors.InputError, match=said):
    _ = timm(content).preprocessing


def test_what_is_open_is_filled_in_and_what_is_set_stays():
  data = schema.default().data
  assert preprocessing.open_options(data)
  data.image_size, data.std = 96, (0.5, 0.5, 0.5)
  preprocessing.fill(data, preprocessing.KERAS)
  assert (data.image_size, data.eval_crop, data.interpolation) == (96, 0.875, 'bilinear')
  assert data.eval_resize == 'center_crop'
  assert (data.mean, data.std) == ((), (0.5, 0.5, 0.5)), 'half of the statistics is for the user to complete'
  data.mean = (0.1, 0.2, 0.3)
  assert not preprocessing.open_options(data)
  before = data.to_dict()
  preprocessing.fill(data, preprocessing.IMAGENET)
  assert data.to_dict() == before


@pytest.mark.parametrize(
  ('mode', 'crop', 'resize'),
  [
    ('squash', {'crop_pct': 1.0}, 'squash'),
    ('squash', {'crop_pct': 0.9}, None),
    ('squash', {}, None),  # of 0.875
    ('center', {}, 'center_crop'),
    ('center', {'crop_pct': 1.0}, 'center_crop'),
    ('border', {'crop_pct': 1.0}, None),
  ],
)
def test_how_evaluation_resizes_comes_from_timm_where_dnt_has_it(timm, mode, crop, resize):
  data = schema.default().data
  data.augment = 'resized_crop_flip'  # has no say in it
  given = timm({'pretrained_cfg': {'crop_mode': mode, **crop}}).preprocessing
  preprocessing.fill(data, given)
  assert data.eval_resize == resize
  assert resize or given.eval_resize.startswith(mode), 'for the message that names it'
  assert data.eval_crop == (crop.get('crop_pct', 0.875) if resize else None)
  data.eval_resize, data.eval_crop = 'center_crop', None
  preprocessing.fill(data, given)
  assert data.eval_crop == crop.get('crop_pct', 0.875)


def test_images_that_are_not_square_are_refused_unless_a_size_is_set(timm):
  given = timm({'pretrained_cfg': {'input_size': [3, 64, 96]}}).preprocessing
  data = schema.default().data
  with pytest.raises(errors.InputError, match=r'64 x 96 pixels.* set config\.data\.image_size'):
    preprocessing.fill(data, given)
  data.image_size = 64
  preprocessing.fill(data, given)
  assert (data.image_size, data.eval_crop) == (64, 0.875)


@pytest.mark.parametrize(
  ('size', 'shape', 'expected'),
  [(None, (8, 8, 1), 8), (None, [28, 28, 3], 28), (32, (8, 8, 1), 32), (None, (28, 20, 3), None), (None, (), None)],
)
def test_the_size_of_a_run_that_took_it_from_its_data_is_that_of_its_images(size, shape, expected):
  data = schema.default().data
  data.image_size = size
  assert preprocessing.of_run(data, shape).image_size == expected


def test_what_a_run_does_is_told_to_timm_and_read_back(timm):
  data = schema.default().data
  described = preprocessing.Preprocessing(64, 0.9, 'bicubic', (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), 'center_crop')
  preprocessing.fill(data, described)
  given = preprocessing.of_run(data)
  cfg = preprocessing.to_timm(given, (64, 64, 3))
  assert (cfg['input_size'], cfg['crop_mode']) == ([3, 64, 64], 'center')
  assert timm({'pretrained_cfg': cfg}).preprocessing == given
  data.eval_resize, data.eval_crop = 'squash', 1.0
  given = preprocessing.of_run(data)
  cfg = preprocessing.to_timm(given, (64, 64, 3))
  assert (cfg['crop_pct'], cfg['crop_mode']) == (1.0, 'squash')
  assert timm({'pretrained_cfg': cfg}).preprocessing == given
