import pytest

from dnt import config as schema
from dnt.config import implied


@pytest.mark.parametrize(
  ('augment', 'resize'), [('none', 'squash'), ('pad_crop_flip', 'squash'), ('resized_crop_flip', 'center_crop')]
)
def test_the_augmentation_decides_how_evaluation_resizes_only_where_nothing_else_does(augment, resize):
  data = schema.default().data
  data.augment = augment
  assert implied.eval_resize(data) == resize
  for data.eval_resize in schema.SCHEMA['data']['eval_resize'].choices:
    assert implied.eval_resize(data) == data.eval_resize


def test_the_kind_of_clipping_decides_its_threshold_only_where_nothing_else_does():
  found = {}
  for name in schema.SCHEMA['clip']['name'].choices:
    clip = schema.default().clip
    clip.name = name
    found[name] = implied.clip_threshold(clip)
    clip.threshold = 0.3
    assert implied.clip_threshold(clip) == 0.3
  assert found == {'none': 1.0, 'global_norm': 1.0, 'value': 1.0, 'block_norm': 1.0, 'adaptive': 0.01}
