import copy
import functools
import importlib
import re
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dnt import config, errors, models
from dnt.config import run_config
from dnt.models import depth

SHAPE = (4, 4, 3)

NETS = """
  import flax.linen as nn
  import jax
  import jax.numpy as jnp
  from dnt.models import blocks, parts, stage

  class Net(nn.Module):
    num_classes: int
    width: int = 8

    @nn.compact
    def __call__(self, x, train):
      x = x.reshape(x.shape[0], -1)
      x = nn.relu(nn.Dense(self.width, name='wide')(x))
      x = nn.BatchNorm(use_running_average=not train, name='norm')(x)
      return nn.Dense(self.num_classes, name='answer')(x).astype(jnp.bfloat16)

  class NoTrain(nn.Module):
    widths: list = None

    def setup(self):
      self.layers = [nn.Dense(width) for width in self.widths or (6, 5)]

    def __call__(self, x):
      x = x.reshape(x.shape[0], -1)
      for layer in self.layers:
        x = layer(x)
      return x

  class Ordered(nn.Module):
    stages: dict
    blocks: tuple

    @nn.compact
    def __call__(self, x):
      x = x.reshape(x.shape[0], -1)
      for name, width in self.stages.items():
        x = nn.Dense(width, name=name.replace('.', '_'))(x)
      return nn.Dense(5, name='head')(x)

  class FromParts(nn.Module):
    num_classes: int
    parts: parts.Parts
    scan: bool = False

    @nn.compact
    def __call__(self, x, train=False):
      x = blocks.Stem(self.parts, 4, name='stem')(x, train)
      block = lambda name: blocks.Basic(self.parts, 4, name=name)
      x = stage.Stage(block, block, 3, scan=self.scan, name='body')(x, train)
      return blocks.Head(self.parts, self.num_classes, name='head')(x, train)

  class Random(nn.Module):
    @nn.compact
    def __call__(self, x, ARGUMENTS):
      x = nn.BatchNorm(use_running_average=not (TRAINS), name='norm')(x.reshape(x.shape[0], -1))
      return nn.Dropout(0.5, deterministic=not (TRAINS))(x)[:, :5]

  class Chooses(nn.Module):
    remat: bool
    scan: bool = True

    @nn.compact
    def __call__(self, x):
      return nn.Dense(5)(x.reshape(x.shape[0], -1))

  class Draws(nn.Module):
    rng: str
    always: bool = False

    @nn.compact
    def __call__(self, x, train):
      x = nn.Dense(5)(x.reshape(x.shape[0], -1))
      return x + jax.random.normal(self.make_rng(self.rng), x.shape) if train or self.always else x

  class TakesMore(nn.Module):
    def __call__(self, x, mask, train):
      return x

  class Wrong(nn.Module):
    @nn.compact
    def __call__(self, x):
      return nn.Dense(3)(x)

  class Needs(nn.Module):
    size: int

    def __call__(self, x):
      return x

  class NotANet:
    pass

  def build():
    return Net(3)
"""


@pytest.fixture(autouse=True)
def nets(tmp_path, monkeypatch):
  (tmp_path / 'mynets.py').write_text(textwrap.dedent(NETS))
  (tmp_path / 'broken.py').write_text('import no_such_package_of_anybody\n')
  (tmp_path / 'garbled.py').write_text('def f(:\n')
  monkeypatch.syspath_prepend(tmp_path)
  yield
  sys.modules.pop('mynets', None)


def settings(name, options=None, **model):
  cfg = config.default()
  cfg.model.update({'name': name, **model})
  if options:
    with cfg.unlocked():
      cfg.model.options = options
  config.validate(cfg)
  return cfg.model


def make(name, options=None, **model):
  return models.make(settings(name, options, **model), 5)


def test_a_module_of_ones_own(tmp_path):
  model = make('mynets:Net', {'width': 7})
  assert [entry.name for entry in depth.trace(model, SHAPE).entries] == ['wide', 'norm', 'answer']
  variables = models.init(depth.trace(model, SHAPE), 0)
  assert variables['params']['wide']['kernel'].shape == (48, 7)
  assert set(variables['batch_stats']) == {'norm'}
  x = np.random.default_rng(0).normal(size=(6, *SHAPE)).astype(np.float32)
  logits, updates = jax.jit(functools.partial(model.apply, train=True, mutable=['batch_stats']))(variables, x)
  assert logits.shape == (6, 5)
  assert logits.dtype == jnp.float32
  assert not np.array_equal(updates['batch_stats']['norm']['mean'], variables['batch_stats']['norm']['mean'])
  assert jax.eval_shape(functools.partial(model.apply, train=False), variables, x).shape == (6, 5)
  assert models.resolved_options(settings('mynets:Net')) == {'folder': str(tmp_path)}
  assert type(model).__name__ == 'Net'


def test_options_reach_a_module_in_their_order_and_alike_in_every_program(tmp_path):
  options = {'stages': {'stem.all': 4, 'body': 8, 'after': 2}, 'blocks': [{'width': 3}, {'width': 5}]}
  given = config.default()
  given.model.update({'name': 'mynets:Ordered', 'options': options})
  run_config.write(tmp_path / 'config.json', given)
  read = run_config.get_config(str(tmp_path / 'config.json'))
  for same in (given, read, config.copy_unlocked(read), copy.deepcopy(read)):
    model = models.make(same.model, 5)
    assert (model.stages, model.blocks) == (options['stages'], tuple(options['blocks']))
    assert [entry.name for entry in depth.trace(model, SHAPE).entries] == ['stem_all', 'body', 'after', 'head']


def test_a_module_that_does_not_know_of_training():
  model = make('mynets:NoTrain', {'widths': (4, 6, 5)})
  assert [entry.name for entry in depth.trace(model, SHAPE).entries] == ['layers_0', 'layers_1', 'layers_2']
  variables = models.init(depth.trace(model, SHAPE), 0)
  assert variables['batch_stats'] == {}
  x = np.ones((2, *SHAPE), np.float32)
  logits = [jax.jit(functools.partial(model.apply, train=train))(variables, x) for train in (True, False)]
  np.testing.assert_array_equal(*logits)


@pytest.mark.parametrize(
  ('arguments', 'trains'),
  [
    ('train', 'train'),
    ('training=False', 'training'),
    ('*, is_training=False', 'is_training'),
    ('deterministic', 'not deterministic'),
    ('*, deterministic=True', 'not deterministic'),
    ('train=False, deterministic=True', 'train and not deterministic'),
  ],
)
def test_the_argument_that_says_whether_it_trains_has_the_names_that_modules_use(tmp_path, arguments, trains):
  text = textwrap.dedent(NETS).replace('ARGUMENTS', arguments).replace('TRAINS', trains)
  (tmp_path / 'mynets.py').write_text(text)
  model = make('mynets:Random')
  variables = models.init(depth.trace(model, SHAPE), 0)
  x = np.random.default_rng(0).normal(2, size=(6, *SHAPE)).astype(np.float32)
  evaluated = model.apply(variables, x, train=False)
  np.testing.assert_allclose(evaluated, x.reshape(6, -1)[:, :5], rtol=1e-4)  # the running mean is 0, the variance 1
  rngs = {'dropout': jax.random.key(1)}
  trained, updates = model.apply(variables, x, train=True, rngs=rngs, mutable=['batch_stats'])
  np.testing.assert_allclose(updates['batch_stats']['norm']['mean'], 0.01 * x.reshape(6, -1).mean(0), rtol=1e-4)
  kept = np.asarray(trained) != 0
  assert 0 < kept.sum() < kept.size
  normalized = (x - x.mean(0)) / x.std(0)
  np.testing.assert_allclose(trained[kept], 2 * normalized.reshape(6, -1)[:, :5][kept], rtol=1e-2, atol=1e-2)


def test_a_module_of_dnts_parts_follows_the_config():
  model = make('mynets:FromParts', norm='rms_norm', activation='tanh', scan=True)
  entries = depth.trace(model, SHAPE).entries
  assert [entry.name for entry in entries] == ['stem', 'body/block001', 'body/block002', 'body/block003', 'head']
  assert entries[3] == depth.Entry('body/block003', 'body/scanned', 1)
  variables = models.init(depth.trace(model, SHAPE), 0)
  assert variables['params']['body']['scanned']['conv1']['kernel'].shape == (2, 3, 3, 4, 4)
  assert variables['batch_stats'] == {}
  apply = functools.partial(model.apply, mutable=[])
  program = str(jax.make_jaxpr(lambda v: apply(v, jnp.ones((2, *SHAPE)), train=True))(variables))
  assert 'tanh' in program
  assert 'scan' in program


@pytest.mark.parametrize(
  ('options', 'model', 'scan', 'remat'),
  [
    ({}, {}, True, False),
    ({}, {'remat': True}, True, True),
    ({}, {'scan': True}, True, False),
    ({'scan': False}, {}, False, False),
    ({'remat': True}, {}, True, True),
    ({'remat': False, 'scan': False}, {}, False, False),
    ({'scan': False}, {'remat': True}, False, True),
  ],
)
def test_scan_and_remat_keep_the_defaults_of_a_module_unless_the_config_sets_them(options, model, scan, remat):
  network = make('mynets:Chooses', options, **model)
  assert (network.scan, network.remat) == (scan, remat)


@pytest.mark.parametrize(
  ('name', 'options', 'model', 'message'),
  [
    ('mynet:Net', None, {}, "'mynet' .*ModuleNotFoundError.*PYTHONPATH"),
    ('broken:Net', None, {}, "'broken' .*no_such_package_of_anybody"),
    ('garbled:Net', None, {}, "'garbled' .*SyntaxError"),
    ('__main__:Net', None, {}, "'__main__:Net' .*notebook or script.* file .*'nets:Net'"),
    ('mynets:Nets', None, {}, "in mynets 'Nets'.* 'Net'"),
    ('mynets:', None, {}, "in mynets ''"),
    ('mynets:NotANet', None, {}, "mynets:NotANet' .*flax.linen.Module"),
    ('mynets:build', None, {}, "mynets:build' .*Flax .*function"),
    ('mynets:Net', {'widht': 7}, {}, "option of mynets:Net 'widht'.* 'width'"),
    ('mynets:Net', {'num_classes': 7}, {}, "'num_classes' of mynets:Net: config.model.num_classes"),
    ('mynets:Chooses', {'remat': False}, {'remat': True}, "'remat' of mynets:Chooses: config.model.remat"),
    ('mynets:FromParts', {'scan': True}, {'scan': True}, "'scan' of mynets:FromParts: config.model.scan"),
    ('mynets:FromParts', {'parts': None}, {}, "'parts' of mynets:FromParts: config.model does"),
    ('mynets:TakesMore', None, {}, 'mynets:TakesMore .*mask, train .*__call__'),
    ('mynets:Needs', None, {}, 'mynets:Needs .*config.model.options.*size'),
    ('mynets:Net', None, {'depth': 20}, 'config.model.depth .*own module'),
    ('mynets:Net', None, {'norm': 'none'}, 'config.model.norm .*own module'),
    ('mynets:Net', None, {'scan': True}, 'config.model.scan .*own module'),
    ('resnets', None, {}, "model .*'resnets'.* 'resnet'"),
    ('resnet', {'width': 7}, {}, 'config.model.options .*own module'),
    ('mlp', None, {'growth_rate': 7}, "'mlp' .*config.model.growth_rate.* depth, width, block"),
  ],
)
def test_mistakes_get_one_clear_sentence(name, options, model, message):
  with pytest.raises(errors.InputError, match=message) as caught:
    make(name, options, **model)
  assert '\n' not in str(caught.value)


def test_logits_of_another_shape_are_refused():
  model = make('mynets:Wrong')
  message = r'mynets:Wrong .*\(1, 4, 4, 3\).* logits .*\(1, 5\)'
  with pytest.raises(errors.InputError, match=message):
    depth.trace(model, SHAPE)


def test_a_module_draws_from_the_rngs_of_training():
  x = jnp.zeros((2, *SHAPE))
  for rng in ('dropout', 'stochastic_depth', 'noise'):
    model = make('mynets:Draws', {'rng': rng})
    variables = models.init(depth.trace(model, SHAPE), 0)
    rngs = {'dropout': jax.random.key(0), 'stochastic_depth': jax.random.key(1)}
    if rng != 'noise':
      assert np.any(model.apply(variables, x, train=True, rngs=rngs))
      continue
    with pytest.raises(errors.InputError, match="mynets:Draws .*'noise' in training.*'stochastic_depth' and 'dropout'"):
      model.apply(variables, x, train=True, rngs=rngs)


def test_a_module_that_draws_in_evaluation_is_refused():
  with pytest.raises(errors.InputError, match="mynets:Draws .*'dropout' in evaluation; .* only in training") as caught:
    depth.trace(make('mynets:Draws', {'rng': 'dropout', 'always': True}), SHAPE)
  assert '\n' not in str(caught.value)


WIDTH = """
import flax.linen as nn
from {beside} import width

class Net(nn.Module):
  @nn.compact
  def __call__(self, x):
    return nn.Dense(5)(nn.Dense(width, name='wide')(x.reshape(x.shape[0], -1)))
"""


@pytest.fixture
def apart(tmp_path, monkeypatch):
  """Writes a module, and one that it imports, into a folder that Python does not search; returns the folder."""
  monkeypatch.setattr(sys, 'path', list(sys.path))  # the loader adds folders

  def write(folder, width, name='apart', beside=None):
    place, beside = tmp_path / folder, beside or f'beside{width}'
    for each, text in ((name, WIDTH.format(beside=beside)), (beside, f'width = {width}\n')):
      path = place / f'{each.replace(".", "/")}.py'
      path.parent.mkdir(parents=True, exist_ok=True)
      path.write_text(text)
    return str(place)

  yield write
  for name in [*sys.modules]:
    if name.partition('.')[0] in ('apart', 'apart_too', 'package', 'helper', 'library'):
      del sys.modules[name]


def width_of(name='apart:Net', **options):
  model = make(name, **options)
  return next(row.shape for row in depth.trace(model, SHAPE).table if row.entry.name == 'wide')


def test_a_module_is_found_in_its_folder(apart):
  folder = apart('here', 7)
  with pytest.raises(errors.InputError, match='beside the config file'):
    make('apart:Net')
  assert width_of(folder=folder) == (7,)
  assert models.resolved_options(settings('apart:Net', folder=folder)) == {'folder': folder}
  assert models.resolved_options(settings('apart:Net')) == {'folder': folder}, 'where it has been found'


def test_a_module_in_a_package_is_found_in_the_folder_of_the_package(apart):
  folder = apart('here', 6, 'package.apart')
  assert width_of('package.apart:Net', folder=folder) == (6,)
  assert models.resolved_options(settings('package.apart:Net'))['folder'] == folder


def test_two_folders_may_hold_modules_of_one_name(apart):
  folders = [apart('one', 8), apart('two', 9)]
  assert [width_of(folder=folder) for folder in (*folders, *folders)] == [(8,), (9,), (8,), (9,)]


@pytest.mark.parametrize(
  ('names', 'beside'),
  [
    (('apart', 'apart'), 'helper'),
    (('apart', 'apart'), 'helper.deeper'),
    (('apart', 'apart_too'), 'helper'),
    (('package.apart', 'package.apart'), 'package.helper'),
    (('apart', 'apart_too'), 'package.helper'),
  ],
)
def test_what_modules_of_two_folders_import_from_beside_them_may_have_one_name(apart, names, beside):
  folders = [apart('one', 8, names[0], beside), apart('two', 9, names[1], beside)]
  given = [*zip(names, folders, strict=True)] * 2
  assert [width_of(f'{name}:Net', folder=folder) for name, folder in given] == [(8,), (9,), (8,), (9,)]


def test_what_is_installed_below_another_folder_stays_and_so_does_dnt(apart, tmp_path):
  installed = tmp_path / 'one' / '.venv' / 'site-packages'
  (installed / 'library-1.dist-info').mkdir(parents=True)
  (installed / 'library.py').touch()
  sys.path.insert(0, str(installed))
  library, dnt = importlib.import_module('library'), sys.modules['dnt']
  folders = [apart('one', 8), apart('two', 9)]
  (tmp_path / 'two' / 'library.py').touch()
  (tmp_path / 'two' / 'dnt').mkdir()
  (tmp_path / 'two' / 'dnt' / '__init__.py').touch()
  assert [width_of(folder=folder) for folder in folders] == [(8,), (9,)]
  assert sys.modules['library'] is library and sys.modules['dnt'] is dnt


def test_code_that_changes_after_its_import_is_said_until_python_imports_it_again(apart, tmp_path, caplog):
  options = settings('apart:Net', folder=apart('here', 8, beside='helper'))
  helper = tmp_path / 'here' / 'helper.py'

  def said():
    caplog.clear()
    models.resolved_options(options)
    return caplog.text

  assert said() == said() == ''
  helper.write_text('width = 10\n')
  assert width_of(folder=options.folder) == (8,)
  assert 'apart:Net has changed (helper.py)' in said() and 'restart' in said()
  for name in ('helper', 'apart'):
    importlib.reload(sys.modules[name])
  assert said() == '' and width_of(folder=options.folder) == (10,)


def test_a_module_that_has_moved_is_refused_or_found_by_pythonpath(apart, tmp_path, monkeypatch, caplog):
  old = apart('old', 4)
  (tmp_path / 'old').rename(tmp_path / 'new')
  monkeypatch.chdir(tmp_path / 'new')
  sys.path.insert(0, str(tmp_path / 'new'))  # as `python -m` does; nobody has said that it is the same module
  with pytest.raises(errors.InputError, match=f'no module .apart. in {re.escape(old)} .*moved.*PYTHONPATH'):
    make('apart:Net', folder=old)
  monkeypatch.setenv('PYTHONPATH', f'{tmp_path}/nothing:{tmp_path}/new')
  assert width_of(folder=old) == width_of(folder=old) == (4,)
  assert caplog.text.count(f'no longer in {old}') == 1
  assert models.resolved_options(settings('apart:Net', folder=old)) == {'folder': f'{tmp_path}/new'}


def test_a_module_with_a_name_of_pythons_own_is_refused(apart, tmp_path):
  (tmp_path / 'apart').mkdir()
  (tmp_path / 'apart' / 'textwrap.py').write_text('class Net: pass')
  with pytest.raises(errors.InputError, match='textwrap.*rename'):
    make('textwrap:Net', folder=str(tmp_path / 'apart'))
  assert sys.modules['textwrap'] is textwrap


def test_the_folder_of_an_installed_module_is_not_recorded():
  assert models.resolved_options(settings('flax.linen:Dense')) == {'folder': None}
