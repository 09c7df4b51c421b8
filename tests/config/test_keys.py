import ml_collections
import pytest

from dnt.config import keys


@pytest.mark.parametrize('kind', [dict, ml_collections.ConfigDict])
def test_nested_values_by_key(kind):
  nested = kind({'a': {'b': 1, 'c': {'d': 2}}, 'e': (3,), 'f': {}})
  assert keys.flatten(nested) == {'a.b': 1, 'a.c.d': 2, 'e': (3,), 'f': kind()}
  assert keys.flatten(nested, ('a.c',)) == {'a.b': 1, 'a.c': kind({'d': 2}), 'e': (3,), 'f': kind()}
  assert [keys.get(nested, key) for key in keys.flatten(nested)] == list(keys.flatten(nested).values())


def test_a_value_is_put_at_its_key_with_its_type():
  config = ml_collections.ConfigDict({'a': {'b': 1.0}, 'c': 'text'})
  keys.put(config, 'a.b', 2)
  keys.put(config, 'c', 'other')
  assert config.to_dict() == {'a': {'b': 2.0}, 'c': 'other'}
  with pytest.raises(TypeError):
    keys.put(config, 'a.b', 'text')
