"""Weights by one string: what comes with them, and every way in which they can be refused."""

import argparse
import dataclasses
import gc
import hashlib
import json
import pathlib
import re
import shutil
import sys
import types
import weakref

import jax
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from dnt import config as schema
from dnt import errors, files, inference, loop, trees
from dnt.config import run_config
from dnt.data import pipeline
from dnt.diagnostics import doctor_report, lr_find, noise
from dnt.models import layouts
from dnt.training import datasets, evaluate, initialize, open_options, record, resume
from dnt.weights import names, preprocessing, pretrained, torch_files


def assert_equal(got, want):
  got, want = trees.flatten(got), trees.flatten(want)
  assert got.keys() == want.keys()
  for path, leaf in want.items():
    np.testing.assert_array_equal(got[path], leaf, err_msg=path)


def test_pickles_hold_the_same_as_safetensors(real_network, resnet18, save):
  first = pretrained.Source(str(save(resnet18)))
  network = real_network('resnet', {'depth': 18}, resnet18)
  for name, content in (('a.pth', network), ('b.bin', {'state_dict': network.state_dict()})):
    assert_equal(pretrained.Source(str(save(content, name))).variables, first.variables)
  assert first.preprocessing == preprocessing.IMAGENET


def test_old_torchvision_names_of_densenet(drawn, save):
  state = drawn('densenet', classes=3)
  old = {re.sub(r'(denselayer\d+\.(?:norm|conv))(\d)', r'\1.\2', name): value for name, value in state.items()}
  assert 'features.denseblock2.denselayer12.norm.2.running_var' in old
  found = [pretrained.Source(str(save(each, f'{i}.safetensors'))).variables for i, each in enumerate((state, old))]
  assert_equal(*found)


def test_the_hub_is_a_folder_with_timms_description(resnet18, save, monkeypatch, imagenet, build):
  path = save(resnet18, 'snapshot/model.safetensors')
  labels = [f'class {index}' for index in range(1000)]
  cfg = {'input_size': [3, 64, 64], 'interpolation': 'bicubic', 'crop_pct': 1.0, 'mean': [0.5] * 3, 'std': [0.25] * 3}
  cfg['crop_mode'] = 'squash'
  path.with_name('config.json').write_text(json.dumps({'pretrained_cfg': cfg, 'label_names': labels}))
  served = types.SimpleNamespace(hf_hub_download=lambda name, file, revision=None: str(path.with_name(file)))
  monkeypatch.setitem(sys.modules, 'huggingface_hub', served)
  imagenet.train.init_from = 'hf:timm/resnet18.toy'
  imagenet.data.image_size, imagenet.data.augment = None, 'resized_crop_flip'
  data = build(imagenet).config.data
  assert data.eval_resize == 'squash'
  assert (data.image_size, data.interpolation, data.eval_crop) == (64, 'bicubic', 1.0)
  assert (tuple(data.mean), tuple(data.std)) == ((0.5,) * 3, (0.25,) * 3)
  given = pretrained.Source('hf:timm/resnet18.toy')
  assert_equal(given.variables, pretrained.Source(str(path)).variables)
  assert given.class_names == tuple(labels)


def test_what_the_user_sets_wins_and_the_config_records_what_ran(resnet18, save, imagenet, build, tmp_path):
  imagenet.train.init_from = str(save(resnet18))
  imagenet.data.update({'interpolation': 'bicubic', 'mean': (0.1, 0.2, 0.3), 'std': (1.0, 1.0, 1.0)})
  run = build(imagenet)
  assert run.spec.image_shape == (32, 32, 3)
  assert (run.config.data.interpolation, run.config.data.eval_crop) == ('bicubic', 0.875)
  assert tuple(run.config.data.mean) == (0.1, 0.2, 0.3)
  files.write_json(tmp_path / 'config.json', run.config.to_dict())
  assert run_config.get_config(str(tmp_path / 'config.json')).data.to_dict() == run.config.data.to_dict()


@pytest.mark.parametrize('init_from', ['', 'weights'])
def test_the_size_comes_with_the_weights(resnet18, save, imagenet, build, init_from):
  imagenet.data.image_size = None
  imagenet.train.init_from = init_from and str(save(resnet18))
  assert build(imagenet).spec.image_shape == ((224, 224, 3) if init_from else (32, 32, 3))


def test_a_head_of_other_classes_starts_at_zero(resnet18, save, imagenet, build, console):
  path = str(save(resnet18))
  pathlib.Path(path).with_name('config.json').write_text('{"architecture": "resnet18", "pretrained_cfg": {}}')
  run = build(imagenet)
  found = trees.flatten(initialize.load_variables(run, pretrained.Source(path)))
  given = trees.flatten(pretrained.Source(path).variables)
  shapes = {'params/head/dense/kernel': (512, 10), 'params/head/dense/bias': (10,)}
  for leaf in found:
    want = np.zeros(shapes[leaf], np.float32) if leaf in shapes else given[leaf]
    np.testing.assert_array_equal(found[leaf], want, err_msg=leaf)
  (line,) = [line for line in console.readouterr().out.splitlines() if path in line]  # of the data there may be others
  said = f'{re.escape(path)} .*1000 classes.* 10.* params/head/dense/bias, params/head/dense/kernel .*zero'
  assert re.fullmatch(said, line)


def test_a_backbone_gets_a_head_of_zeros(drawn, save, imagenet, build, console):
  imagenet.model.update({'name': 'densenet', 'depth': 121})
  tensors = drawn('densenet')
  backbone = {name: value for name, value in tensors.items() if not name.startswith('classifier.')}
  source = pretrained.Source(str(save(backbone)))
  found = trees.flatten(initialize.load_variables(build(imagenet), source))
  whole = trees.flatten(pretrained.Source(str(save(tensors, 'whole.safetensors'))).variables)
  assert found.keys() == whole.keys()
  for leaf, value in found.items():
    want = np.zeros(value.shape) if leaf.startswith('params/head/dense/') else whole[leaf]
    np.testing.assert_array_equal(value, want, err_msg=leaf)
  assert found['params/head/dense/kernel'].shape == (1024, 10)
  assert source.absent == ('classifier.weight', 'classifier.bias')
  assert 'no classifier' in console.readouterr().out


def test_a_head_of_other_layers_is_left_out_and_can_be_drawn(resnet18, save, imagenet, build, console):
  for leaf in ('weight', 'bias'):
    resnet18[f'fc.1.{leaf}'] = resnet18.pop(f'fc.{leaf}')  # Sequential(Dropout(), Linear(512, 1000))
  source, imagenet.finetune.reinit = pretrained.Source(str(save(resnet18))), ('head',)
  found = trees.flatten(initialize.load_variables(build(imagenet), source))
  assert found['params/head/dense/kernel'].shape == (512, 10) and found['params/head/dense/kernel'].any()
  np.testing.assert_array_equal(found['params/stem/norm/scale'], resnet18['bn1.weight'])
  said = 'its head (fc.1.bias, fc.1.weight) is not that of resnet-18 (PyTorch), so its weights are taken without it'
  assert console.readouterr().out.count(said) == 1
  with pytest.raises(errors.InputError, match=r'without a classifier .*fc\.weight'):
    inference.load(source.origin)


def test_a_backbone_does_not_predict(resnet18, save):
  del resnet18['fc.weight'], resnet18['fc.bias']
  with pytest.raises(errors.InputError, match=r'without a classifier .*fc\.weight'):
    inference.load(str(save(resnet18)))


@pytest.mark.parametrize(
  'beside', [{'architecture': 'resnetblur18', 'pretrained_cfg': {}}, {'architecture': 'resnetblur18'}]
)
def test_the_architecture_beside_the_weights_is_read(resnet18, save, beside):
  path = save(resnet18)
  path.with_name('config.json').write_text(json.dumps(beside))
  with pytest.raises(errors.InputError, match="'resnetblur18'"):
    _ = pretrained.Source(str(path)).network


def test_the_architecture_in_a_checkpoint_is_read(resnet18, save):
  path = save({'state_dict': resnet18, 'args': argparse.Namespace(model='resnetaa18')}, 'last.pth.tar')
  with pytest.raises(errors.InputError, match="'resnetaa18'"):
    _ = pretrained.Source(str(path)).network


OTHER_OPTIONS = [
  ({'act_layer': 'silu', 'output_stride': 8}, "act_layer='silu', output_stride=8"),
  ({'global_pool': 'max'}, "global_pool='max'"),
  ({'block_args': {'attn_layer': 'se'}}, 'block_args='),
  ({'num_classes': 10, 'in_chans': 3, 'img_size': 224, 'drop_rate': 0.1, 'pretrained_cfg_overlay': {}}, ''),
  ({'global_pool': 'avg', 'act_layer': 'relu', 'output_stride': 32, 'norm_layer': None}, ''),
  ({'norm_layer': 'batchnorm2d', 'memory_efficient': True}, ''),
]


@pytest.mark.parametrize('place', ['beside', 'inside'])
@pytest.mark.parametrize(('options', 'said'), OTHER_OPTIONS)
def test_options_that_make_another_network_of_the_same_tensors_are_refused(resnet18, save, place, options, said):
  if place == 'beside':
    path = save(resnet18)
    content = {'architecture': 'resnet18', 'model_args': options, 'pretrained_cfg': {}}
    path.with_name('config.json').write_text(json.dumps(content))
  else:
    more = {key: value for key, value in options.items() if key != 'global_pool'}
    written = argparse.Namespace(model='resnet18', gp=options.get('global_pool'), model_kwargs=more)
    path = save({'state_dict': resnet18, 'args': written}, 'last.pth.tar')
  source = pretrained.Source(str(path))
  if said:
    with pytest.raises(errors.InputError, match=f'built with {re.escape(said)}.* resnet-18'):
      _ = source.network
  else:
    assert source.network['depth'] == 18


@pytest.mark.parametrize('beside', [None, {'architectures': ['Other']}, {'architecture': 'resnet18'}])
def test_preprocessing_that_nothing_says_is_said_to_be_assumed(save, tiny, console, beside):
  path = save({})  # no tensor is read
  if beside:
    path.with_name('config.json').write_text(json.dumps(beside))
  tiny.train.init_from, tiny.data.image_size = str(path), 8
  data = datasets.load(tiny, ())
  open_options.resolve(tiny, data)
  lines = [line for line in console.readouterr().out.splitlines() if 'how its images are prepared' in line]
  assert len(lines) == (beside != {'architecture': 'resnet18'})
  for line in lines:
    assert f'nothing in or beside {path} ' in line and 'eval_crop=0.9655' in line
    assert ': eval_resize, eval_crop, interpolation, mean, std of config.data are' in line
  tiny.data.update({'interpolation': 'bilinear', 'mean': (0.5,) * 3, 'std': (0.2,) * 3})
  with tiny.data.ignore_type():
    tiny.data.eval_resize, tiny.data.eval_crop = 'squash', 1.0
  datasets.load(tiny, ())
  assert 'how its images' not in console.readouterr().out


ARGS = {'mean': [0.5], 'std': [0.2, 0.3, 0.4], 'img_size': 128, 'crop_pct': 1.0, 'interpolation': 'bicubic'}
OF_ARGS = preprocessing.Preprocessing(128, 1.0, 'bicubic', (0.5,) * 3, (0.2, 0.3, 0.4), 'center_crop')


@pytest.mark.parametrize(
  ('args', 'beside', 'expected', 'assumed'),
  [
    (ARGS, None, OF_ARGS, ()),
    ({**ARGS, 'input_size': [3, 96, 96], 'crop_mode': 'squash'}, None, {'image_size': 96, 'eval_resize': 'squash'}, ()),
    (
      {**ARGS, 'mean': None, 'interpolation': ''},
      None,
      {'mean': (0.485, 0.456, 0.406), 'interpolation': 'bilinear'},
      ('interpolation', 'mean'),
    ),
    (ARGS, {'crop_pct': 0.9, 'mean': [0.1] * 3, 'std': None}, {'eval_crop': 0.9, 'mean': (0.1,) * 3}, ()),
    (
      {**ARGS, 'interpolation': 'random', 'std': 3},
      {'interpolation': 'bilinear', 'std': [0.2, 0.3, 0.4]},
      {'interpolation': 'bilinear'},
      (),
    ),
    ({'mean': None, 'lr': 0.1}, None, preprocessing.IMAGENET, tuple(preprocessing._FIELDS)),
    ({'crop_pct': 0.95}, {}, dataclasses.replace(preprocessing.TIMM, eval_crop=0.95), ()),
  ],
)
@pytest.mark.parametrize('kind', [dict, argparse.Namespace])
def test_the_preprocessing_in_a_checkpoint_is_read(save, kind, args, beside, expected, assumed):
  path = save({'state_dict': {'fc.bias': np.zeros(2)}, 'args': kind(model='resnet18', **args)}, 'last.pth.tar')
  if beside is not None:
    path.with_name('config.json').write_text(json.dumps({'architecture': 'resnet18', 'pretrained_cfg': beside}))
  source = pretrained.Source(str(path))
  if isinstance(expected, dict):
    expected = dataclasses.replace(OF_ARGS, **expected)
  assert source.preprocessing == expected
  assert source.assumed == assumed


@pytest.mark.parametrize(
  'args',
  [
    {'mean': 'imagenet', 'std': 0.2},
    {'mean': [0.5, 0.5], 'std': [True] * 3},
    {'img_size': 'large', 'crop_pct': {'eval': 1}},
    {'crop_pct': -1.0, 'input_size': [0, 0]},
    {'interpolation': 'random', 'crop_mode': 3, 'mean': [float('nan')] * 3},
  ],
)
def test_options_of_other_programs_with_these_names_say_nothing(save, args):
  source = pretrained.Source(str(save({'state_dict': {'fc.bias': np.zeros(2)}, 'args': args}, 'last.pth.tar')))
  assert source.preprocessing == preprocessing.IMAGENET
  assert source.assumed == tuple(preprocessing._FIELDS)


@pytest.mark.parametrize(('size', 'expected'), [(96, 96), ([96, 96], 96), ([64, 96], (64, 96)), ([3, 96, 96], 96)])
def test_the_size_in_a_checkpoint_is_a_side_two_or_a_shape(save, size, expected):
  path = save({'model': {'fc.bias': np.zeros(2)}, 'args': {'input_size': size}}, 'last.pth.tar')
  assert pretrained.Source(str(path)).preprocessing.image_size == expected


def test_a_line_says_what_the_options_in_a_checkpoint_leave_open(save, tiny, console):
  args = {'mean': [0.5] * 3, 'std': [0.2] * 3, 'img_size': 8}
  tiny.train.init_from = str(save({'state_dict': {'fc.bias': np.zeros(2)}, 'args': args}, 'last.pth.tar'))
  config = datasets.prepared(tiny, pretrained.Source(tiny.train.init_from))
  assert (config.data.mean, config.data.std) == ((0.5,) * 3, (0.2,) * 3)
  (line,) = [line for line in console.readouterr().out.splitlines() if 'how its images are prepared' in line]
  assert ': eval_resize, eval_crop, interpolation of config.data are' in line


@pytest.mark.parametrize('said', [None, 'resnet18'])
def test_where_nothing_says_the_architecture_a_line_does(resnet18, save, console, said):
  path = save(resnet18)
  if said:
    path.with_name('config.json').write_text(json.dumps({'architecture': said, 'pretrained_cfg': {}}))
  source = pretrained.Source(str(path))
  assert source.network['depth'] == 18 and source.variables
  lines = console.readouterr().out.splitlines()
  assert [line for line in lines if 'architecture' in line and 'resnet-18' in line] == lines
  assert len(lines) == (0 if said else 1)


def sha256(path):
  return hashlib.sha256(path.read_bytes()).hexdigest()


def test_files_are_described_by_their_digests(resnet18, save, monkeypatch, tmp_path):
  path = save(resnet18, 'a/model.safetensors')
  assert pretrained.Source(str(path)).describe() == {'origin': str(path), 'sha256': {'model.safetensors': sha256(path)}}
  path.with_name('config.json').write_text('{}')
  both = {name: sha256(path.with_name(name)) for name in ('model.safetensors', 'config.json')}
  assert pretrained.Source(str(path)).describe()['sha256'] == both
  commit = tmp_path / ('c' * 40)
  path.parent.rename(commit)
  served = types.SimpleNamespace(hf_hub_download=lambda name, file, revision=None: str(commit / file))
  monkeypatch.setitem(sys.modules, 'huggingface_hub', served)
  found = pretrained.Source('hf:timm/toy@main').describe()
  assert found == {'origin': 'hf:timm/toy@main', 'sha256': both, 'revision': 'c' * 40}


def test_weights_in_several_files_are_described_by_all_of_them(resnet18, save, tmp_path):
  path = save({}, 'empty.safetensors').with_name('model.safetensors.index.json')
  parts = {f'{i}.safetensors': {name: resnet18[name]} for i, name in enumerate(('conv1.weight', 'fc.bias'))}
  for name, part in parts.items():
    save(part, name)
  path.write_text(json.dumps({'weight_map': {tensor: name for name, part in parts.items() for tensor in part}}))
  found = pretrained.Source(str(path)).describe()['sha256']
  assert found == {name: sha256(path.with_name(name)) for name in (path.name, *parts)}
  folder = tmp_path / 'tfjs'
  folder.mkdir()
  (folder / 'model.json').write_text(
    json.dumps({'weightsManifest': [{'paths': ['one.bin', 'two.bin'], 'weights': []}]})
  )
  for name in ('one.bin', 'two.bin'):
    (folder / name).write_bytes(name.encode())
  found = pretrained.Source(f'tfjs:{folder}').describe()['sha256']
  assert found == {name: sha256(folder / name) for name in ('model.json', 'one.bin', 'two.bin')}
  (folder / 'two.bin').unlink()
  with pytest.raises(errors.InputError, match=r'two\.bin'):
    pretrained.Source(f'tfjs:{folder}').describe()


def test_a_run_is_described_by_its_step_and_the_digest_of_its_summary(tiny, saved, tmp_path):
  _, state, _ = saved(tiny, step=7)
  found = pretrained.Source(str(tmp_path / 'run')).describe()
  assert found == {'origin': str(tmp_path / 'run'), 'step': 7, 'params_sha256': trees.sha256(state.params)}


def test_weights_in_several_files(resnet18, save, monkeypatch):
  whole = pretrained.Source(str(save(resnet18))).variables
  places = {}
  for number, start in enumerate((0, 40, 80)):
    part = dict(list(resnet18.items())[start : start + 40 if start < 80 else None])
    places |= dict.fromkeys(part, save(part, f'part{number}.safetensors').name)
  path = save({}, 'empty.safetensors').with_name('model.safetensors.index.json')
  path.write_text(json.dumps({'weight_map': places}))
  assert_equal(pretrained.Source(str(path)).variables, whole)

  class EntryNotFoundError(Exception):
    pass

  def fetch(name, file):
    if file == 'model.safetensors':
      raise EntryNotFoundError('404')
    return str(path.with_name(file))

  monkeypatch.setitem(sys.modules, 'huggingface_hub', types.SimpleNamespace(hf_hub_download=fetch))
  assert_equal(pretrained.Source('hf:owner/large').variables, whole)


@pytest.mark.parametrize('name', ['model_best.pth.tar', 'last.ckpt', 'MODEL.PT', 'checkpoint.tar', 'pytorch_model.bin'])
def test_suffixes_of_what_torch_saves(resnet18, save, name):
  given = {'state_dict': {f'module.{key}': value for key, value in resnet18.items()}, 'epoch': 3}
  assert pretrained.Source(str(save(given, name))).network['depth'] == 18


def test_a_file_of_another_suffix_is_there_all_the_same(tmp_path):
  (tmp_path / 'model.onnx').touch()
  with pytest.raises(errors.InputError, match=r'model\.onnx is there.*suffix.*\.pth'):
    _ = pretrained.Source(str(tmp_path / 'model.onnx')).network


def test_a_workdir_may_be_called_like_a_file(tmp_path):
  workdir = tmp_path / 'best.ckpt'
  workdir.mkdir()
  (workdir / 'config.json').touch()
  assert pretrained.Source(str(workdir)).workdir == workdir


@pytest.mark.parametrize(
  ('change', 'said'),
  [
    (lambda s: s.pop('layer3.1.bn2.running_var'), r'resnet-18 .*missing: layer3\.1\.bn2\.running_var$'),
    (lambda s: s.update(extra=s['fc.bias']), 'resnet-18 .*unexpected: extra$'),
    (lambda s: s.pop('fc.weight'), 'missing: fc.weight$'),
    (lambda s: s.update({'fc.bias': s['fc.bias'][:7]}), r'params/head/dense/bias: \(7,\), wanted \(10,\)'),
    (
      lambda s: s.update({'layer4.0.conv2.weight': s['layer4.0.conv2.weight'][:, :8].copy()}),
      r'params/stage4/block001/conv2/kernel: \(3, 3, 8, 512\), wanted \(3, 3, 512, 512\)',
    ),
  ],
)
def test_a_file_that_is_not_whole_is_refused_by_name(resnet18, save, imagenet, build, change, said):
  change(resnet18)
  run = build(imagenet)
  with pytest.raises(errors.InputError, match=said):
    initialize.load_variables(run, pretrained.Source(str(save(resnet18))))


@pytest.mark.parametrize(
  ('network', 'options', 'said'),
  [
    ('resnet-18', {'depth': 34}, 'config.model.depth=18 (now 34)'),
    (
      'resnet-18',
      {'norm_epsilon': 1e-3, 'activation': 'gelu'},
      "config.model.norm_epsilon=1e-05 (now 0.001), config.model.activation='relu' (now 'gelu')",
    ),
    ('resnet-18', {'depth': 50}, "config.model.depth=18 (now 50), config.model.block='basic' (now 'bottleneck')"),
    (
      'resnet-50 (Keras)',
      {'depth': 50},
      "config.model.stride_on='1x1' (now '3x3'), config.model.norm_epsilon=0.001 (now 1e-05)",
    ),
    (
      'resnet-50 (Keras)',
      {'name': 'densenet', 'depth': 121},
      "config.model.name='resnet' (now 'densenet'), config.model.depth=50 (now 121), config.model.stride_on='1x1' "
      "(now '3x3'), config.model.norm_epsilon=0.001 (now 1e-05)",
    ),
    (
      'densenet-121',
      {'name': 'mlp', 'depth': 3, 'stem': None},
      "config.model.name='densenet' (now 'mlp'), config.model.stem='imagenet' (now None), config.model.depth=121 "
      '(now 3)',
    ),
  ],
)
def test_weights_of_another_network_say_what_to_set(imagenet, network, options, said):
  known = [each for framework in ('torch', 'keras') for each in names.networks(framework)]
  model = next(each.model for each in known if each.title.startswith(network))
  given = types.SimpleNamespace(decisive=model, origin='here')
  imagenet.model.update(options)
  resolved = open_options.resolve(imagenet, datasets.load(imagenet, ()))
  with pytest.raises(errors.InputError) as caught:
    pretrained.check_model(given, resolved.model)
  assert str(caught.value).startswith('here ') and str(caught.value).endswith(f' {said}')


def test_weights_of_another_family_are_refused_before_their_leaves_are_compared(resnet18, save, imagenet, build):
  imagenet.model.update({'name': 'densenet', 'depth': 121})
  with pytest.raises(errors.InputError, match=" config.model.name='resnet'"):
    initialize.load_variables(build(imagenet), pretrained.Source(str(save(resnet18))))


@pytest.mark.parametrize('text', ['resnet50', 'missing.safetensors', 'tfjs:missing', 'missing.pth', 'tfjs:'])
def test_nothing_there_says_what_it_takes(text):
  for part in ('variables', 'preprocessing', 'network', 'workdir'):
    with pytest.raises(errors.InputError, match=r'nothing at .*workdir.*hf:<owner>/<name>') as e:
      getattr(pretrained.Source(text), part)
    assert '\n' not in str(e.value)


def test_a_folder_that_is_no_workdir(tmp_path):
  with pytest.raises(errors.InputError, match=f'{re.escape(str(tmp_path))} .*no workdir'):
    _ = pretrained.Source(str(tmp_path)).variables


def test_a_run_comes_with_its_preprocessing_and_what_its_leaves_do_not_show(imagenet, tmp_path, monkeypatch):
  imagenet.model.update({'depth': 50, 'stride_on': '1x1', 'norm_epsilon': 1e-3})
  imagenet.data.update({'interpolation': 'bicubic', 'eval_crop': 0.9})
  resolved = open_options.resolve(imagenet, datasets.load(imagenet, ()))
  files.write_json(tmp_path / 'config.json', resolved.to_dict())
  saved = types.SimpleNamespace(params={'a': 1}, batch_stats={}, ema={}, meta={'class_names': ['tabby', 'lynx']})
  monkeypatch.setattr(pretrained.checkpoints, 'load_parameters', lambda workdir: saved)
  given = pretrained.Source(str(tmp_path))
  assert given.variables == {'params': {'a': 1}, 'batch_stats': {}}
  assert given.preprocessing == preprocessing.of_run(resolved.data)
  assert given.decisive == {'norm_epsilon': 1e-3, 'stride_on': '1x1'}
  assert given.class_names == ('tabby', 'lynx')
  pretrained.check_model(given, resolved.model)
  resolved.model.stride_on = '3x3'
  with pytest.raises(errors.InputError, match=r" config.model.stride_on='1x1' \(now '3x3'\)$"):
    pretrained.check_model(given, resolved.model)


@pytest.fixture
def read(monkeypatch):
  """What is read of files, of the hub and of other runs from here on, by name, in turn."""
  found = []

  def watch(owner, name, what):
    call = getattr(owner, name)

    def counted(*args, **options):
      found.append(what(*args))
      return call(*args, **options)

    monkeypatch.setattr(owner, name, counted)

  watch(safetensors_numpy, 'load_file', lambda path: pathlib.Path(path).name)
  watch(preprocessing, 'TimmConfig', lambda path, *_: path.name)
  watch(pretrained.checkpoints, 'load_parameters', lambda workdir: f'{workdir.name}/checkpoints')
  watch(run_config, 'get_config', lambda path: '/'.join(pathlib.Path(path).parts[-2:]))

  def serve(folder):
    def download(name, file, revision=None):
      found.append(f'hub {file}')
      return str(folder / file)

    served = types.SimpleNamespace(hf_hub_download=download)
    monkeypatch.setitem(sys.modules, 'huggingface_hub', served)
    return found

  return serve


@pytest.fixture
def transfer(imagenet, tmp_path):
  """A config that asks for all that can come from weights: network, preprocessing, features, a range test, a start."""
  imagenet.model.update({'name': 'pretrained', 'stem': None, 'depth': None})
  imagenet.train.update({'init_from': 'hf:timm/toy', 'steps': 2, 'batch_size': 32})
  imagenet.finetune.update({'trainable': 'head', 'cache_dir': str(tmp_path / 'features'), 'l2_sp': 0.1})
  imagenet.optim.learning_rate, imagenet.lr_find.steps, imagenet.eval.every = 'auto', 20, '0'
  return imagenet


HUB = ['config.json', 'hub config.json', 'hub model.safetensors', 'model.safetensors']


@pytest.mark.thorough
def test_a_run_reads_its_weights_once_and_lets_go_of_them(
  resnet18, save, transfer, read, tmp_path, undrawn, monkeypatch
):
  path = save(resnet18)
  cfg = {'input_size': [3, 32, 32], 'mean': [0.5] * 3, 'std': [0.25] * 3}
  path.with_name('config.json').write_text(json.dumps({'pretrained_cfg': cfg}))
  found, held, to_variables, train = read(tmp_path), [], names.to_variables, loop._run

  def watched(*args):
    variables = to_variables(*args)
    held.extend(weakref.ref(leaf) for leaf in trees.flatten(variables).values())
    return variables

  def check(session, state):
    gc.collect()
    in_state = {leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(state)}  # on CPU it may be the same memory
    left = [leaf() for leaf in held if leaf() is not None]
    assert not [leaf.shape for leaf in left if leaf.ctypes.data not in in_state]
    return train(session, state)

  monkeypatch.setattr(names, 'to_variables', watched)
  monkeypatch.setattr(loop, '_run', check)
  loop.train(transfer, tmp_path / 'run', record.Clock(0.0), 'test')
  assert sorted(found) == HUB and held
  assert json.loads((tmp_path / 'run' / 'lr_find.json').read_text())['new']
  assert list((tmp_path / 'features').iterdir())
  found.clear()
  evaluate.evaluate(transfer, tmp_path / 'run')
  assert all(name.startswith('run/') for name in found), 'what they determined is in the checkpoint'

  class StartedError(Exception):
    pass

  def stop(*args):
    raise StartedError

  monkeypatch.setattr(pipeline, 'make_train_loader', stop)  # all is read by then
  for tool in (lr_find, noise):
    found.clear()
    with pytest.raises(StartedError):
      tool.run(transfer, tmp_path / 'other')
    assert sorted(found) == HUB
  transfer.optim.learning_rate = 0.1
  found.clear()
  with pytest.raises(StartedError):
    doctor_report.run(transfer, tmp_path / 'doctor', 1, False)
  assert sorted(found) == HUB
  found.clear()
  inference.load('hf:timm/toy')
  assert sorted(found) == HUB


@pytest.mark.thorough
def test_a_run_reads_another_run_once(transfer, tiny, saved, read, tmp_path, undrawn):
  transfer.train.init_from, transfer.finetune.l2_sp = '', 0.0
  transfer.model.update({'name': 'resnet', 'stem': 'cifar', 'depth': 8})
  transfer.optim.learning_rate = 0.1
  saved(transfer, tmp_path / 'other')
  found = read(tmp_path)
  inference.load(str(tmp_path / 'other'))
  assert sorted(found) == ['other/checkpoints', 'other/config.json']
  found.clear()
  transfer.train.init_from, transfer.optim.learning_rate = str(tmp_path / 'other'), 'auto'
  transfer.model.name = 'pretrained'
  loop.train(transfer, tmp_path / 'run', record.Clock(0.0), 'test')
  assert sorted(name for name in found if name.startswith('other')) == ['other/checkpoints', 'other/config.json']


@pytest.mark.thorough
def test_a_run_that_goes_on_needs_its_weights_no_more(imagenet, saved, tmp_path, undrawn):
  imagenet.model.stem, imagenet.model.depth, imagenet.train.steps = 'cifar', 8, 8
  saved(imagenet, tmp_path / 'other')
  imagenet.data.update({'interpolation': 'bilinear', 'eval_crop': 0.5, 'mean': (0.5,) * 3, 'std': (0.2,) * 3})
  imagenet.train.init_from = str(tmp_path / 'other')
  saved(imagenet)
  shutil.rmtree(tmp_path / 'other')
  summary = loop.train(imagenet, tmp_path / 'run', record.Clock(0.0), 'test')
  assert summary['step'] == 8


@pytest.mark.parametrize('framework', ['torch', 'keras'])
def test_the_network_comes_with_the_weights(imagenet, build, monkeypatch, tmp_path, framework):
  wanted = names.networks(framework)[-1 if framework == 'torch' else 0]  # DenseNet-121, Keras' old ResNet-50
  path = tmp_path / f'model.{"safetensors" if framework == "torch" else "h5"}'
  path.touch()
  read = dict.fromkeys(wanted.tensors().values(), np.zeros(1))
  kind = pretrained._FILES[path.suffix]._replace(read=lambda path: torch_files.Content(read))
  monkeypatch.setitem(pretrained._FILES, path.suffix, kind)
  imagenet.model.update({'stem': None, 'depth': None, 'name': 'pretrained'})
  imagenet.model.dtype, imagenet.model.remat = 'bfloat16', True
  imagenet.train.init_from = str(path)
  asked = imagenet.to_dict()
  found = build(imagenet).config.model
  assert imagenet.to_dict() == asked
  assert found.num_classes == 10
  imagenet.model.update(wanted.model)
  imagenet.train.init_from = ''
  assert found.to_dict() == build(imagenet).config.model.to_dict()


def test_the_network_of_another_run(tiny, saved, build, tmp_path):
  tiny.model.width = None
  tiny.model.update({'name': 'resnet', 'depth': 14, 'scan': True, 'activation': 'gelu', 'dtype': 'bfloat16'})
  tiny.model.stochastic_depth = 0.2
  run, state, _ = saved(tiny)
  tiny.data.synthetic_classes, tiny.train.init_from = 4, str(tmp_path / 'run')
  tiny.model.update({'name': 'pretrained', 'scan': False, 'activation': 'relu', 'dtype': 'float32'})
  with tiny.model.ignore_type():
    tiny.model.depth = tiny.model.stochastic_depth = None
  again = build(tiny)
  want = run.config.model.to_dict() | {'num_classes': 4, 'scan': False, 'dtype': 'float32'}
  assert again.config.model.to_dict() == want
  found = trees.flatten(initialize.load_variables(again, pretrained.Source(str(tmp_path / 'run')))['params'])
  given = trees.flatten(layouts.to_unrolled(state.params, layouts.scanned_rows(state.params)))
  assert found.keys() == given.keys()
  for leaf in found:
    assert leaf.startswith('head/') or np.array_equal(found[leaf], given[leaf])
  tiny.model.stochastic_depth = 0.0
  assert build(tiny).config.model.stochastic_depth == 0.0
  tiny.model.depth = 20
  with pytest.raises(errors.InputError, match=f'{re.escape(str(tmp_path / "run"))} .*config.model'):
    initialize.load_variables(build(tiny), pretrained.Source(str(tmp_path / 'run')))


@pytest.mark.parametrize(
  ('given', 'activation', 'norm'),
  [((), 'tanh', 'none'), (('model.activation',), 'relu', 'none'), (('model.norm', 'seed'), 'tanh', 'batch_norm')],
)
def test_what_is_given_stays_at_its_default_too(tiny, tmp_path, given, activation, norm):
  written = schema.copy_unlocked(tiny)
  written.model.update({'num_classes': 10, 'activation': 'tanh', 'norm': 'none'})
  run_config.write(tmp_path / 'config.json', written)
  tiny.model.name = 'pretrained'
  with tiny.model.ignore_type():
    tiny.model.depth = tiny.model.width = None
  schema.mark_given(tiny, [*given, 'model.depth'])
  config = schema.copy_unlocked(tiny)
  pretrained.fill_model(config.model, pretrained.Source(str(tmp_path)))
  assert (config.model.activation, config.model.norm, config.model.depth) == (activation, norm, 3)
  # A run of these weights that goes on, by the same command or one without the option.
  config.model.name = 'mlp'
  trained = resume.Trained(config, {})
  kept = resume.keep_open(tiny, trained)
  assert (kept.model.activation, kept.model.norm) == (activation, norm)
  config.model.update({'activation': 'gelu', 'norm': 'layer_norm'})
  kept = resume.keep_open(tiny, trained)
  assert kept.model.activation == ('relu' if 'model.activation' in given else 'gelu')
  assert kept.model.norm == ('batch_norm' if 'model.norm' in given else 'layer_norm')


def test_a_network_that_computes_something_else_on_the_weights_of_a_run(tiny, saved, build, tmp_path, console):
  tiny.model.update({'depth': 3, 'block': 'plain', 'activation': 'tanh', 'norm': 'layer_norm', 'norm_groups': 8})
  saved(tiny)
  source = pretrained.Source(str(tmp_path / 'run'))
  initialize.load_variables(build(tiny), source)
  assert 'not as the run' not in console.readouterr().out
  tiny.seed, tiny.model.initializer, tiny.model.norm_groups = 1, 'lecun', 4  # none has an effect on these weights
  tiny.model.activation, tiny.model.block = 'relu', 'residual'
  initialize.load_variables(build(tiny), source)
  lines = [line for line in console.readouterr().out.splitlines() if 'not as the run' in line]
  assert {line.partition('/run: ')[2] for line in lines} == {
    "model.block was 'plain' and is now 'residual'",
    "model.activation was 'tanh' and is now 'relu'",
  }
  tiny.model.norm = 'group_norm'
  initialize.load_variables(build(tiny), source)
  output = console.readouterr().out
  assert "model.norm was 'layer_norm' and is now 'group_norm'" in output
  assert 'model.norm_groups was 8 and is now 4' in output


def test_a_module_of_the_users_own_comes_with_its_options(wide_network, build, tmp_path):
  wide_network.model.options = {'width': 7}
  files.write_json(tmp_path / 'config.json', build(wide_network).config.to_dict())
  wide_network.model.options = {}
  wide_network.model.name, wide_network.train.init_from = 'pretrained', str(tmp_path)
  run = build(wide_network)
  assert (run.config.model.name, run.config.model.options) == ('wide_network:Net', {'width': 7})
  shapes = {leaf.shape for leaf in trees.flatten(run.init_variables()['params']).values()}
  assert shapes == {(192, 7), (7,), (7, 10), (10,)}


def test_a_network_of_no_weights_is_refused(tiny):
  tiny.model.name = 'pretrained'
  with pytest.raises(errors.InputError, match="name='pretrained' .*config.train.init_from"):
    datasets.load(tiny, ())
