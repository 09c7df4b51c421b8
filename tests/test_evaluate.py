import jax
import numpy as np
import pytest

from dnt import evaluate, experiment
from dnt.parallel import mesh as mesh_lib


@pytest.mark.parametrize('placement', ['device', 'stream'])
@pytest.mark.parametrize('batch_size', [16, 48, 128])
def test_every_example_counts_once_whatever_the_batch_size(tiny, batch_size, placement):
  tiny.data.synthetic_examples = 50
  tiny.data.placement, tiny.data.workers = placement, 0
  tiny.eval.batch_size = batch_size
  data = experiment.load_data(tiny, ('test', 'train[:30%]'))
  run = experiment.make(experiment.resolve(tiny, data), data.spec)
  mesh = mesh_lib.make_mesh(tiny.mesh)
  variables = mesh_lib.place(run.init_variables(), mesh_lib.replicated(mesh))
  with evaluate.Evaluator(run, mesh, data.evaluation) as evaluator:
    result = evaluator(variables)
    again = evaluator(variables, '_ema')

  for split, count in (('test', 50), ('train[:30%]', 15)):
    source = data.evaluation[split]
    mean, std = (np.reshape(value, (1, 1, 1, -1)) for value in (run.config.data.mean, run.config.data.std))
    images = np.stack([source[index][0] for index in range(count)])
    labels = np.array([source[index][1] for index in range(count)])
    logits = run.model.apply(run.init_variables(), (images / 255.0 - mean) / std, train=False)
    picked = jax.nn.log_softmax(logits)[np.arange(count), labels]
    predicted = np.argmax(logits, -1)
    assert len(source) == count
    assert result.metrics[f'{split}/loss'] == pytest.approx(-float(picked.mean()), rel=1e-5)
    assert result.metrics[f'{split}/accuracy'] == pytest.approx(float((predicted == labels).mean()))
    confusion = np.zeros((10, 10), int)
    np.add.at(confusion, (labels, predicted), 1)
    assert np.array_equal(result.confusion[split], confusion)
    assert again.metrics[f'{split}_ema/loss'] == result.metrics[f'{split}/loss']
