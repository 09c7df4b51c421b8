"""The gradient of a residual stack without a norm at finite width, to leading order.

Mean field theory takes the width to infinity at fixed depth, where the gradient at a layer's output is independent of
the layer's weights. At width N, the part that the later layers received from this one is not independent; it starts as
a fraction 1 / N of the gradient's power. In a residual network whose activation has a nonzero mean, such as ReLU, this
part grows faster than the rest and dominates after some twenty layers at widths of hundreds. Its growth has a closed
form.

With u = W x, h = u + b and y = phi(h), x' = x + y, the weights meet all later signals and gradients through u alone:
given x and u they are W = u x^T / |x|^2 + W', where W' is a new draw orthogonal to x. The backward pass is then

  W^T D g = x (v . g) / |x|^2 + W'^T D g,   D = diag(phi'(h)),  v = D u,

whose last term is noise of power chi |g|^2 (1 - 1 / N), equal in all directions except x. The gradient therefore
consists of noise and multiples of the signals x of the later layers, and its second moments along v and x of every
layer describe it completely. The products of these directions are known: they are moments of Gaussian u and h.
"""

import itertools

import numpy as np

from dnt.meanfield.theory import activations, plain, quadrature


def residual_gains(net: plain.Net, depth: int, width: int) -> np.ndarray:
  """Squared norm of the gradient at each layer's input over that at its output, float64 [depth].

  The ratio of means over draws, for x' = x + phi(W x + b) on Gaussian inputs of unit variance; a gradient at the output
  that is Gaussian.

  Args:
    net: activation and variances.
    depth: layers.
    width: units a layer, N.
  """
  products, squares, chis = _directions(net, depth)  # of v of all layers and then x of all layers, over N
  # Over |g|^2 at the output: the power of g, and the second moments of its products with the directions over sqrt(N).
  power, moments = 1.0, products / width
  gains = []
  for layer in reversed(range(depth)):
    v, x = layer, depth + layer
    noise = chis[layer] * power
    added = (moments[v, v] + 2 * moments[v, x]) / squares[layer]
    along = products[:, x] / squares[layer]  # what the directions get of v . g
    mixed = np.outer(along, moments[v])
    moments = moments + mixed + mixed.T + moments[v, v] * np.outer(along, along)
    moments += noise / width * (products - squares[layer] * np.outer(along, along))
    before, power = power, power + noise * (1 - 1 / width) + added
    gains.append(power / before)
  return np.array(gains[::-1])


def _directions(net: plain.Net, depth: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Products of v_1 ... v_L, x_1 ... x_L per unit [2 L, 2 L]; E[x^2] and chi of each layer [L].

  Units of different layers are independent given their variances; x_m holds y_l, which depends on v_l, for m > l.
  """
  phi, slope = activations.make(net.activation)
  expect = quadrature.expectation
  x_mean, x_square = 0.0, 1.0
  rows = []
  for _ in range(depth):
    own = net.weight_variance * x_square  # Var[u]
    q = own + net.bias_variance
    fraction, rest = own / q, own * net.bias_variance / q  # given h, u is N(fraction h, rest)
    y_mean, y_square = expect(phi, q), expect(lambda h: phi(h) ** 2, q)
    chi = net.weight_variance * expect(lambda h: slope(h) ** 2, q)
    v_mean = fraction * expect(lambda h: slope(h) * h, q)
    v_square = expect(lambda h, fraction=fraction, rest=rest: slope(h) ** 2 * ((fraction * h) ** 2 + rest), q)
    vy = fraction * expect(lambda h: slope(h) * h * phi(h), q)
    rows.append((x_mean, x_square, y_mean, v_mean, v_square, vy, chi))
    x_square += y_square + 2 * x_mean * y_mean
    x_mean += y_mean
  x_mean, x_square, y_mean, v_mean, v_square, vy, chi = np.array(rows).T
  products = np.empty((2, depth, 2, depth))
  products[0, :, 0] = np.outer(v_mean, v_mean)
  products[0, range(depth), 0, range(depth)] = v_square
  for early, late in itertools.product(range(depth), range(depth)):
    first, last = min(early, late), max(early, late)
    products[1, early, 1, late] = x_square[first] + x_mean[first] * (x_mean[last] - x_mean[first])
    through = vy[early] - v_mean[early] * y_mean[early] if late > early else 0.0
    products[0, early, 1, late] = products[1, late, 0, early] = v_mean[early] * x_mean[late] + through
  return products.reshape(2 * depth, 2 * depth), x_square, chi
