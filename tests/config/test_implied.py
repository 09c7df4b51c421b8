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


def test_the_update_rule_decides_its_constants_only_where_nothing_else_does():
  found = {}
  for name in schema.SCHEMA['optim']['name'].choices:
    optim = schema.default().optim
    optim.name = name
    found[name] = implied.rule(optim)
    for key, value in (('momentum', 0.0), ('nesterov', name != 'muon'), ('epsilon', 0.5)):
      optim[key] = value
      assert implied.rule(optim)[key] == value
  usual = {'momentum': 0.9, 'nesterov': False, 'epsilon': 1e-8}
  muon, lamb = usual | {'momentum': 0.95, 'nesterov': True}, usual | {'epsilon': 1e-6}
  assert found == {'sgd': usual, 'adamw': usual, 'lamb': lamb, 'muon': muon}
