"""Names the metrics of an evaluation, and says which of two values is better and which metrics are fractions."""

MORE_IS_BETTER = ('accuracy', 'balanced_accuracy', 'top5_accuracy', 'auroc')
LESS_IS_BETTER = ('loss', 'calibration_error')
FRACTIONS = ('accuracy', 'balanced_accuracy', 'top5_accuracy')  # shown in percent
