"""Mean field theory of signal propagation: what random, wide dense networks do to signals and gradients.

A layer is h = W x + b, y = phi(norm(h)), with W_ij ~ N(0, sigma_w^2 / fan-in) and b_i ~ N(0, sigma_b^2). In a wide
network the pre-activations h are Gaussian, and two numbers say everything: their variance q, and the correlation c of
those of two inputs. Both follow maps from layer to layer, and the squared norm of the gradient grows by a factor chi.

- `plain`: layers alone, without a norm: q*, c*, chi_1, depth scales, the edge of chaos (Poole et al. 2016, Schoenholz
  et al. 2017).
- `batch_norm`: its gradient explosion (Yang et al. 2019).
- `layers`: a stack of any block and norm, layer by layer (residual: Yang and Schoenholz 2017).
- `finite_width`: what a residual stack without a norm adds at the widths that are run.
- `quadrature`, `activations`: the Gaussian integrals and what is integrated.

All of it is float64 on the host.
"""
