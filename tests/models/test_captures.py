import jax
import jax.numpy as jnp

from dnt import trees
from dnt.models import captures, freeze
from dnt.training import telemetry


def test_frozen_entries_have_forward_figures_and_cost_no_backward_pass(tiny, begin):
  tiny.model.norm, tiny.model.depth = 'none', 6
  run, state, batch = begin(tiny)
  images, labels = run.preprocess(batch, None), batch['label']
  trained = {'head': state.params['head']}
  frozen = frozenset(row.entry.name for row in run.table[:-1])
  partition = freeze.Partition(frozen, frozenset(path for path in run.leaves.shapes if path.startswith('head/')))
  capturing = telemetry.make(run.config, run.leaves, partition, run.table)
  assert trees.flatten(capturing.gradient_captures).keys() == {'head/gradient_capture'}

  def loss(trained, gradient_captures, watched):
    params = {'params': {**state.params, **trained}, captures.GRADIENTS: gradient_captures}
    with captures.capturing() if watched else captures.barriers():
      logits, updates = run.model.apply(params, images, train=True, mutable=[captures.CAPTURES])
    return -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(16), labels]), updates.get(captures.CAPTURES, {})

  gradient = jax.jit(jax.grad(loss, (0, 1), has_aux=True), static_argnums=2)
  (head, gradient_captures), found = gradient(trained, capturing.gradient_captures, True)
  columns = capturing.measure(trained, head, head, found, gradient_captures)
  names = [row.entry.name for row in run.table]
  entries = {name: [names[index] for index in column.entries] for name, column in columns.items()}
  assert entries['activation_rms'] == names
  assert entries['gradient_norm'] == entries['output_gradient_norm'] == entries['parameter_norm'] == ['head']

  def products(gradient_captures, watched):
    lowered = gradient.lower(trained, gradient_captures, watched)
    return lowered.as_text().count('stablehlo.dot_general')

  assert products(capturing.gradient_captures, True) == products({}, False)
  assert products(captures.make_gradient_captures(run.table), True) > products({}, False)


def test_captures_leave_nothing_where_nobody_watches(tiny, begin):
  run, state, batch = begin(tiny)
  variables = {'params': state.params, 'batch_stats': state.batch_stats}
  _, updates = run.model.apply(
    variables, run.preprocess(batch, None), train=True, mutable=['batch_stats', captures.CAPTURES]
  )
  assert captures.CAPTURES not in updates
