"""Networks of one's own with a planted fault, for the doctor's benchmark."""

import flax.linen as nn
import jax
import jax.numpy as jnp

FAULTS = ('none', 'dead', 'cut', 'squashed', 'rectified')


class Net(nn.Module):
  """Dense or convolutional layers, one of which may hold a fault.

  Attributes:
    num_classes: number of classes.
    depth: number of hidden layers.
    width: units or channels of each.
    conv: whether the layers are 3x3 convolutions.
    fault: none; dead (a bias of -100 before a relu); cut (`stop_gradient` after a layer); squashed (the outputs are
      probabilities, which the loss takes for logits); rectified (a relu on the logits, which starts dead).
    at: the layer with the fault, from 1 on.
  """

  num_classes: int
  depth: int = 4
  width: int = 32
  conv: bool = False
  fault: str = 'none'
  at: int = 1

  @nn.compact
  def __call__(self, x):
    if not self.conv:
      x = x.reshape(x.shape[0], -1)
    for index in range(1, self.depth + 1):
      here = index == self.at
      bias = nn.initializers.constant(-100.0 if here and self.fault == 'dead' else 0.0)
      options = {'kernel_init': nn.initializers.he_normal(), 'bias_init': bias, 'name': f'layer{index}'}
      layer = nn.Conv(self.width, (3, 3), **options) if self.conv else nn.Dense(self.width, **options)
      x = nn.relu(layer(x))
      if here and self.fault == 'cut':
        x = jax.lax.stop_gradient(x)
    if self.conv:
      x = jnp.mean(x, (1, 2))
    bias = nn.initializers.constant(-10.0 if self.fault == 'rectified' else 0.0)
    x = nn.Dense(self.num_classes, bias_init=bias, name='answer')(x)
    if self.fault == 'squashed':
      x = nn.softmax(x)
    return nn.relu(x) if self.fault == 'rectified' else x
