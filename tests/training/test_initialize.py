"""Where a run starts; the order of the sources is tested with the loop."""

import dataclasses
import logging
import re

import jax
import numpy as np
import pytest

from dnt import checkpoints, errors, trees
from dnt.data import class_order
from dnt.models import depth, layouts
from dnt.parallel import mesh as mesh_lib
from dnt.parallel import multihost
from dnt.training import datasets, experiment, initialize, open_options
from dnt.weights import pretrained

pytestmark = pytest.mark.usefixtures('all_devices')


def build(config):
  data = datasets.load(config, ())
  return experiment.make(open_options.resolve(config, data), data.spec)


@pytest.fixture
def resnet(tiny):
  tiny.model.name, tiny.model.depth, tiny.model.width = 'resnet', 20, None
  return tiny


def unrolled(variables, model, shape):
  return layouts.to_unrolled(variables, depth.trace(model, shape).scanned)


@pytest.mark.parametrize('scan', [False, True])
def test_matched_variables_come_in_the_layout_of_the_model(resnet, scan):
  given = build(resnet).init_variables()
  resnet.model.scan = scan
  run = build(resnet)
  found = initialize.match(run.trace, given, 'somewhere')
  assert jax.tree.structure(found) == jax.tree.structure(run.init_variables())
  back = unrolled(found, run.model, run.spec.image_shape)
  jax.tree.map(np.testing.assert_array_equal, back, given)


@pytest.mark.parametrize(
  ('change', 'said'),
  [
    (lambda params: params.pop('head'), r'params/head/\S+: absent, wanted \(64, 10\)'),
    (lambda params: params.update(extra={'bias': np.zeros(3, np.float32)}), r'params/extra/bias: \(3,\), wanted none'),
    (lambda params: params.pop('stage2'), r'and \d+ more'),
  ],
)
def test_other_variables_are_refused_leaf_by_leaf(resnet, change, said):
  run = build(resnet)
  variables = {name: dict(tree) for name, tree in run.init_variables().items()}
  change(variables['params'])
  with pytest.raises(errors.InputError, match=rf'^somewhere .*config\.model.* {said}'):
    initialize.match(run.trace, variables, 'somewhere')


@pytest.mark.parametrize('step', [5, 6])  # where a phase starts too
def test_a_run_that_goes_on_draws_with_the_seed_of_its_config(tiny, saved, tmp_path, step):
  tiny.finetune.trainable, tiny.finetune.unfreeze, tiny.finetune.cached_views = 'head', (('6', 'all'),), 0
  tiny.train.steps, tiny.seed = 8, 2**32 - 1
  _, state, _ = saved(tiny, step=step)

  def rng(seed):
    tiny.seed = seed
    run, mesh = build(tiny), mesh_lib.make_mesh(tiny.mesh)
    made = initialize.make_state(run, mesh, initialize.find(run, mesh, checkpoints.ReadOnly(tmp_path / 'run'), None))
    assert int(made.step) == step
    assert made.rng.sharding == run.shardings(mesh, made).rng
    return np.asarray(made.rng)

  np.testing.assert_array_equal(rng(2**32 - 1), state.rng)
  np.testing.assert_array_equal(rng(1), jax.random.key_data(jax.random.key(1, impl='threefry2x32')))


@pytest.mark.usefixtures('eight_devices')
def test_a_new_run_starts_from_the_seed_on_the_mesh(tiny, tmp_path):
  tiny.mesh.fsdp = 2
  tiny.model.width = 256
  run, mesh = build(tiny), mesh_lib.make_mesh(tiny.mesh)
  start = initialize.find(run, mesh, checkpoints.Checkpoints(tmp_path, tiny.checkpoint), None)
  state = initialize.make_state(run, mesh, start)
  assert start.history == {} and start.restored is start.variables is None
  assert int(state.step) == 0
  expected = trees.flatten(run.init_variables()['params'])
  found = trees.flatten(state.params)
  assert found.keys() == expected.keys()
  for path, leaf in found.items():
    np.testing.assert_array_equal(leaf, expected[path], err_msg=path)
  assert found['stage1/block001/dense/kernel'].sharding.shard_shape((256, 256)) == (256, 128)
  tiny.seed = 1
  run = build(tiny)
  other = initialize.make_state(run, mesh, initialize.find(run, mesh, checkpoints.ReadOnly(tmp_path / 'other'), None))
  assert not np.array_equal(trees.flatten(other.params)['stem/dense/kernel'], found['stem/dense/kernel'])


@pytest.mark.usefixtures('eight_devices')
@pytest.mark.parametrize('scan', [False, True])
def test_a_new_state_is_made_on_the_host(tiny, monkeypatch, scan):
  """Split over its devices, it need not fit on one."""
  tiny.model.scan, tiny.ema.decay, tiny.mesh.fsdp = scan, 0.5, 2
  run, mesh, placed = build(tiny), mesh_lib.make_mesh(tiny.mesh), []
  place = mesh_lib.place
  monkeypatch.setattr(mesh_lib, 'place', lambda tree, shardings: placed.append(tree) or place(tree, shardings))
  host, accelerator = jax.devices()[0], jax.devices()[3]
  with jax.default_device(accelerator):
    state = initialize.make_state(run, mesh, initialize.Start(0, None, None, None, {}))
  (made,) = placed
  arrays = [leaf for leaf in jax.tree.leaves(made) if isinstance(leaf, jax.Array)]  # NumPy filled the others
  assert {device for array in arrays for device in array.devices()} == {host}
  assert trees.flatten(state.ema['params']).keys() == trees.flatten(state.params).keys()


@pytest.mark.usefixtures('eight_devices')
def test_what_is_compiled_for_is_known_before_the_state_and_is_what_the_state_is(tiny, tmp_path):
  tiny.mesh.fsdp = 2
  tiny.model.width = 256
  run, mesh = build(tiny), mesh_lib.make_mesh(tiny.mesh)
  start = initialize.find(run, mesh, checkpoints.Checkpoints(tmp_path, tiny.checkpoint), None)
  assert start.step == 0

  def what(leaf):
    return leaf.shape, leaf.dtype, leaf.sharding

  assert jax.tree.map(what, start.shapes) == jax.tree.map(what, initialize.make_state(run, mesh, start))


def test_a_checkpoint_of_another_network_is_refused_before_anything_is_compiled(tiny, tmp_path):
  run, mesh = build(tiny), mesh_lib.make_mesh(tiny.mesh)
  saved = checkpoints.Checkpoints(tmp_path, tiny.checkpoint)
  state = initialize.make_state(run, mesh, initialize.find(run, mesh, saved, None))
  saved.save(3, state.replace(step=state.step + 3), {})
  saved.close()
  assert initialize.find(run, mesh, checkpoints.ReadOnly(tmp_path), None).step == 3
  tiny.model.width = 8
  with pytest.raises(errors.InputError, match='stem/dense/kernel'):
    initialize.find(build(tiny), mesh, checkpoints.ReadOnly(tmp_path), None)


RENAMED = {
  'the same': (lambda names: names, 'kept', ''),
  'another order': (lambda names: names[::-1], 'reversed', 'another order'),
  'one renamed': (lambda names: (*names[:-1], 'z_class'), 'zero', 'z_class.* start at zero'),
  'numbers': (lambda names: tuple(map(str, range(10))), 'zero', 'start at zero'),
}


@pytest.mark.thorough
@pytest.mark.parametrize('case', RENAMED)
def test_the_head_of_pretrained_weights_follows_the_names_of_the_classes(
  resnet, saved, tmp_path, change_splits, caplog, case
):
  rename, expected, line = RENAMED[case]
  _, state, _ = saved(resnet, tmp_path / 'other')
  change_splits(lambda split: dataclasses.replace(split, class_names=rename(split.class_names)))
  with caplog.at_level(logging.INFO, 'dnt'):
    loaded = initialize.load_variables(build(resnet), pretrained.Source(str(tmp_path / 'other')))
  found, saved_head = (trees.flatten(each)['head/dense/kernel'] for each in (loaded['params'], state.params))
  wanted = {'kept': saved_head, 'reversed': saved_head[:, ::-1], 'zero': np.zeros_like(saved_head)}
  np.testing.assert_array_equal(found, wanted[expected])
  np.testing.assert_array_equal(loaded['params']['stem']['conv']['kernel'], state.params['stem']['conv']['kernel'])
  said = ' '.join(record.getMessage() for record in caplog.records)
  assert re.search(line, said) if line else not said


def test_the_head_is_the_last_entry_with_parameters(tiny, saved, tmp_path, change_splits):
  saved(tiny, tmp_path / 'other')
  change_splits(lambda split: dataclasses.replace(split, class_names=tuple(map(str, range(10)))))
  run = build(tiny)
  pool = depth.Row(depth.Entry('pool', 'pool'), (10,), 0, 0)
  run = run._replace(trace=dataclasses.replace(run.trace, table=(*run.trace.table, pool)))
  loaded = initialize.load_variables(run, pretrained.Source(str(tmp_path / 'other')))
  assert not trees.flatten(loaded['params'])['head/dense/kernel'].any()


@pytest.mark.thorough
def test_the_head_of_weights_without_names_is_kept_by_count_and_this_is_said(
  resnet, saved, tmp_path, monkeypatch, caplog
):
  _, state, _ = saved(resnet, tmp_path / 'other')
  monkeypatch.setattr(pretrained.Source, 'class_names', ())
  with caplog.at_level(logging.INFO, 'dnt'):
    loaded = initialize.load_variables(build(resnet), pretrained.Source(str(tmp_path / 'other')))
  jax.tree.map(np.testing.assert_array_equal, loaded['params']['head'], state.params['head'])
  assert 'no class names' in caplog.text and '10 classes' in caplog.text


@pytest.mark.parametrize('backbone', [False, True])
def test_a_head_that_starts_at_zero_is_not_frozen_there(
  tiny, saved, tmp_path, change_splits, monkeypatch, backbone, undrawn
):
  _, state, _ = saved(tiny, tmp_path / 'other')
  tiny.finetune.trainable, tiny.finetune.unfreeze = 'stage1/.*', (('50%', 'all'),)
  source = pretrained.Source(str(tmp_path / 'other'))
  initialize.load_variables(build(tiny), source)  # a head that knows the classes may be frozen
  change_splits(lambda split: dataclasses.replace(split, class_names=split.class_names[::-1]))
  initialize.load_variables(build(tiny), source)
  change_splits(lambda split: dataclasses.replace(split, class_names=tuple(map(str, range(10)))))
  if backbone:
    below = {name: leaf for name, leaf in state.params.items() if name != 'head'}
    monkeypatch.setattr(pretrained.Source, 'absent', ('fc.weight', 'fc.bias'))
    monkeypatch.setattr(pretrained.Source, 'variables', {'params': below, 'batch_stats': state.batch_stats})
    source = pretrained.Source(str(tmp_path / 'other'))
  with pytest.raises(
    errors.InputError,
    match=r"zero, and .*trainable='stage1/\.\*' .*set config\.finetune\.trainable='stage1/\.\*\|head'$",
  ):
    initialize.load_variables(build(tiny), source)
  tiny.finetune.trainable = 'stage1/.*|head'
  assert not initialize.load_variables(build(tiny), source)['params']['head']['dense']['kernel'].any()


@pytest.mark.parametrize('scan', [False, True])
@pytest.mark.parametrize(
  ('depths', 'reinit', 'drawn'),
  [
    ((5, 5), ('stage1/block00[23]',), {'stage1/block002', 'stage1/block003'}),
    ((4, 5), ('.*/block003/.*', 'head'), {'stage1/block003', 'head'}),
    ((5, 4), ('stage1/block003',), set()),
  ],
)
def test_what_reinit_names_is_drawn_and_the_rest_comes_from_the_weights(
  tiny, saved, tmp_path, caplog, depths, reinit, drawn, scan
):
  tiny.seed, tiny.model.depth = 1, depths[0]
  _, state, _ = saved(tiny, tmp_path / 'other')
  tiny.seed, tiny.model.depth, tiny.model.scan, tiny.finetune.reinit = 2, depths[1], scan, reinit
  run = build(tiny)
  with caplog.at_level(logging.INFO, 'dnt'):
    loaded = initialize.load_variables(run, pretrained.Source(str(tmp_path / 'other')))
  theirs = trees.flatten(layouts.to_unrolled(state.params, layouts.scanned_rows(state.params)))
  found, new = (
    trees.flatten(layouts.to_unrolled(each, run.trace.scanned)['params']) for each in (loaded, run.init_variables())
  )
  assert found.keys() == new.keys()
  for path, leaf in found.items():
    entry = path.rsplit('/', 2)[0]
    np.testing.assert_array_equal(leaf, (new if entry in drawn else theirs)[path], err_msg=path)
  other = {path.rsplit('/', 2)[0] for path in found if path in theirs and (found[path] != theirs[path]).any()}
  assert other == drawn & {path.rsplit('/', 2)[0] for path in theirs}
  assert ('leaves are drawn anew, not from' in caplog.text) == bool(drawn)
  assert not drawn or f'params/{max(drawn)}/dense/kernel' in caplog.text


def test_what_differs_can_be_named_for_reinit_and_a_name_that_does_not_exist_is_refused(tiny, saved, tmp_path):
  saved(tiny, tmp_path / 'other')
  tiny.model.depth = 4
  with pytest.raises(errors.InputError, match=r'block002/dense/kernel: absent.*; what finetune\.reinit names is drawn'):
    initialize.load_variables(build(tiny), pretrained.Source(str(tmp_path / 'other')))
  tiny.finetune.reinit = ('stage1/block002', 'block002')
  with pytest.raises(errors.InputError, match=r"reinit: 'block002' matches .* such as stage1/block00\d/dense/"):
    initialize.load_variables(build(tiny), pretrained.Source(str(tmp_path / 'other')))


def test_a_head_that_reinit_names_is_drawn_for_other_classes_too(tiny, saved, tmp_path, change_splits):
  saved(tiny, tmp_path / 'other')
  change_splits(lambda split: dataclasses.replace(split, class_names=tuple(map(str, range(10)))))
  tiny.seed, tiny.finetune.reinit = 3, ('head',)
  run = build(tiny)
  loaded = initialize.load_variables(run, pretrained.Source(str(tmp_path / 'other')))
  np.testing.assert_array_equal(
    loaded['params']['head']['dense']['kernel'], run.init_variables()['params']['head']['dense']['kernel']
  )


def test_a_head_that_reinit_names_in_part_follows_the_names_of_the_classes(
  tiny, saved, tmp_path, change_splits, caplog
):
  _, state, _ = saved(tiny, tmp_path / 'other')
  change_splits(lambda split: dataclasses.replace(split, class_names=split.class_names[::-1]))
  tiny.finetune.reinit = ('head/.*/bias',)
  with caplog.at_level(logging.INFO, 'dnt'):
    loaded = initialize.load_variables(build(tiny), pretrained.Source(str(tmp_path / 'other')))
  found, theirs = (each['head']['dense']['kernel'] for each in (loaded['params'], state.params))
  np.testing.assert_array_equal(found, theirs[:, ::-1])
  assert 'another order' in caplog.text
  change_splits(lambda split: dataclasses.replace(split, class_names=tuple(f'other{n}' for n in range(10))))
  loaded = initialize.load_variables(build(tiny), pretrained.Source(str(tmp_path / 'other')))
  assert not loaded['params']['head']['dense']['kernel'].any()


@pytest.mark.parametrize('case', ['another order', 'one renamed'])
def test_names_of_classes_are_compared_in_time_in_proportion_to_their_number(
  tiny, saved, tmp_path, change_splits, monkeypatch, case
):
  read, normalized = [], class_order.normalized

  class Names(tuple):
    def __iter__(self):
      read.append(self)
      return super().__iter__()

    def index(self, *args):
      read.append(self)
      return super().index(*args)

  saved(tiny, tmp_path / 'other')
  change_splits(lambda split: dataclasses.replace(split, class_names=RENAMED[case][0](split.class_names)))
  run = build(tiny)
  monkeypatch.setattr(class_order, 'normalized', lambda names: Names(normalized(names)))
  initialize.load_variables(run, pretrained.Source(str(tmp_path / 'other')))
  assert 0 < len(read) < 10, 'the names are not read once for each of the 10 classes'


def test_what_never_trains_is_not_drawn_anew(tiny):
  tiny.model.depth, tiny.finetune.trainable = 5, 'top:1'
  data = datasets.load(tiny, ())
  config = open_options.resolve(tiny, data)
  config.train.init_from = 'runs/other'
  config.finetune.reinit = ('stage1/block003', 'head')
  experiment.make(config, data.spec)
  config.finetune.reinit = ('stage1/.*', 'head')
  with pytest.raises(
    errors.InputError, match=r'draws stage1/block00[12]/\S+ anew, and stage1/block00[12] never trains'
  ):
    experiment.make(config, data.spec)


def test_processes_with_other_weights_are_refused(tiny, saved, tmp_path, monkeypatch):
  saved(tiny, tmp_path / 'other')
  run, source = build(tiny), pretrained.Source(str(tmp_path / 'other'))
  initialize.load_variables(run, source)  # the source reads its files only once
  monkeypatch.setattr(multihost, 'is_single', lambda: False)
  monkeypatch.setattr(multihost, 'gather_from_all', lambda value: [value, value])
  initialize.load_variables(run, source)
  monkeypatch.setattr(multihost, 'gather_from_all', lambda value: [value, dict.fromkeys(value, '00')])
  with pytest.raises(errors.InputError, match='weights .*init_from is .* on process 0 and "00" on process 1'):
    initialize.load_variables(run, source)


def test_another_run_starts_from_the_average_and_the_run_itself_from_what_trains(tiny, saved, tmp_path):
  tiny.ema.decay = 0.9
  run, state, _ = saved(tiny)
  source = pretrained.Source(str(tmp_path / 'run'))
  averaged, raw = jax.device_get((state.ema, {'params': state.params, 'batch_stats': state.batch_stats}))
  assert trees.sha256(averaged['params']) != trees.sha256(raw['params'])
  jax.tree.map(np.testing.assert_array_equal, initialize.load_variables(run, source), averaged)
  jax.tree.map(np.testing.assert_array_equal, initialize.load_start(run, tmp_path / 'other', source), averaged)
  jax.tree.map(np.testing.assert_array_equal, initialize.load_start(run, tmp_path / 'run', source), raw)
  assert source.describe()['params_sha256'] == trees.sha256(averaged['params'])


def test_only_the_last_layer_of_a_head_has_classes():
  shapes = {
    'a/head/norm/scale': (4,),
    'a/head/one/kernel': (9, 4),
    'a/head/two/kernel': (4, 4),
    'a/head/two/bias': (4,),
  }
  want = {path: np.zeros(shape) for path, shape in {**shapes, 'a/stem/kernel': (3, 4)}.items()}
  assert initialize._head(want, 'head', 4) == ['a/head/two/kernel', 'a/head/two/bias']
