"""Images explained one by one and together, beside what the pieces say by themselves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from dnt import errors, inference
from dnt.explanation import cam, faithfulness, maps
from dnt.parallel import mesh as mesh_lib

pytestmark = pytest.mark.usefixtures('undrawn')


@pytest.fixture
def network(own_network, saved, tmp_path):
  """A small convolutional network on the mesh, and the mesh."""
  saved(own_network)
  mesh = mesh_lib.make_mesh(own_network.mesh)
  return inference.load(str(tmp_path / 'run'), mesh), mesh


@pytest.fixture
def paths(tmp_path):
  """Eleven image files, the third of which is none."""
  draw = np.random.default_rng(0)
  found = [str(tmp_path / f'{index:02d}.png') for index in range(11)]
  for path in found:
    Image.fromarray(draw.integers(0, 256, (10, 9, 3), np.uint8)).save(path)
  (tmp_path / '02.png').write_bytes(b'no image')
  return found


def explain(network, mesh, paths, batch_size, target=None, method='grad_cam'):
  explainer = maps.Explainer(network, mesh, cam.choose(network.table, None), method, batch_size)
  skipped = {}
  return list(explainer(paths, target, skipped.__setitem__)), skipped


@pytest.mark.thorough
def test_the_same_one_by_one_and_in_batches_with_a_filled_up_last_one(network, paths):
  one_by_one, skipped = explain(*network, paths, 1)
  together, also_skipped = explain(*network, paths, 8)
  assert list(skipped) == [paths[2]] and skipped == also_skipped and 'no format' in skipped[paths[2]]
  assert [each.path for each in one_by_one] == [each.path for each in together] == paths[:2] + paths[3:]
  assert any(each.map.max() > 0 for each in together)
  for one, other in zip(one_by_one, together, strict=True):
    np.testing.assert_array_equal(one.image, other.image)
    np.testing.assert_allclose(one.map, other.map, rtol=0, atol=1e-6 * max(one.map.max(), 1e-3))
    np.testing.assert_allclose(one.probabilities, other.probabilities, rtol=1e-5)
    np.testing.assert_allclose((one.areas, one.random_areas), (other.areas, other.random_areas), atol=1e-5)
    assert one.target == other.target == one.probabilities.argmax()


def test_an_image_without_finite_logits_is_skipped(network, paths, monkeypatch):
  made = maps.Maps(np.zeros((2, 8, 8), np.float32), np.array([[0.5, 0.5], [np.nan, np.nan]]), np.zeros(2, np.int32))
  monkeypatch.setattr(maps.Explainer, 'maps', lambda *_: made)
  monkeypatch.setattr(maps.Explainer, 'areas', lambda *_: faithfulness.Areas(np.zeros(2), np.zeros(2)))
  found, skipped = explain(*network, paths[:2], 2)
  assert [each.path for each in found] == paths[:1]
  assert skipped == {paths[1]: f'the network gives no finite logits for the image {paths[1]}'}


def test_an_image_is_what_the_pieces_say(network, paths):
  """On eight devices, which share a batch; the target is given."""
  found, _ = explain(*network, paths[:1], 1, target=3, method='layer_cam')
  given, entry = network[0], cam.choose(network[0].table, None)
  images = given.preprocess(jnp.asarray(found[0].image[None]))
  # Read off the mesh: there the one image is not divided by eight.
  variables = jax.device_get(given.variables)
  target = np.array([3], np.int32)
  wanted = jax.jit(lambda v, x, t: cam.explain(given.model, entry, 'layer_cam', v, x, t))(variables, images, target)
  assert found[0].target == 3
  np.testing.assert_allclose(found[0].map, cam.upsample(wanted.values, (8, 8))[0], rtol=0, atol=1e-6)
  np.testing.assert_allclose(found[0].probabilities, jax.nn.softmax(wanted.logits)[0], rtol=1e-5)
  run = jax.jit(lambda x: jax.nn.softmax(given.model.apply(variables, x, train=False))[:, 3])
  noise = cam.upsample(jnp.asarray(faithfulness.random_maps([0], wanted.values.shape[1:])), (8, 8))
  for areas, order in ((found[0].areas, found[0].map[None]), (found[0].random_areas, np.asarray(noise))):
    measured = faithfulness.measure(run, images, faithfulness.ranks(order, np.asarray(noise)))
    np.testing.assert_allclose(areas, [each[0] for each in measured], rtol=1e-5)


def test_a_class_is_named_or_numbered():
  names = ('cat', 'dog', '0')
  assert [maps.class_index(names, text) for text in ('dog', '1', '0')] == [1, 1, 2]
  with pytest.raises(errors.InputError, match=r"class 'dgo'.* 'dog'.* 0, cat, dog"):
    maps.class_index(names, 'dgo')
  with pytest.raises(errors.InputError, match=r'class 3\b.* has 3\b.* from 0'):
    maps.class_index(names, '3')
  names = ('crane', 'dog', 'crane')
  assert [maps.class_index(names, text) for text in ('dog', '2')] == [1, 2]
  with pytest.raises(errors.InputError, match=r"'crane'.* index of one: 0, 2$"):
    maps.class_index(names, 'crane')
