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
  older = data.to_dict()
  del older['eval_resize']
  assert implied.eval_resize(older) == resize
  for data.eval_resize in schema.SCHEMA['data']['eval_resize'].choices:
    assert implied.eval_resize(data) == data.eval_resize
