"""What vulture takes for unused although it is not; `vulture dnt .ci/unused.py` finds nothing else."""

reached_preemption, should_preserve  # Orbax calls them
Axes  # named in annotations alone, which are strings
__getattr__, __dir__  # makes `dnt.train` available without importing jax
__qualname__  # how Flax names a module in messages
promote_dtype  # a field of flax's dense layer, which reads it
nesterov  # an option that implied.rule reads by its key
# Fields of results that are read by place or by name in a loop.
squared_gradient, standard_error  # noise.Estimate
deletion, insertion  # faithfulness.Faithfulness
xi_q, xi_c, xi_gradient  # plain.Phase
output_gradient_norm, gradient_norm, parameter_norm, update_ratio  # metric_names.EntryRow
activation_mean, activation_rms, clip_factor  # metric_names.EntryRow
