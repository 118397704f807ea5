"""Experiments: penalties and dropout on one architecture, side by side."""

from keras_scaled_l2.experiments.arms import Arm as Arm
from keras_scaled_l2.experiments.compare import compare as compare
from keras_scaled_l2.experiments.dropout_variant import with_dropout as with_dropout
from keras_scaled_l2.experiments.problems import load_problem as load_problem
from keras_scaled_l2.experiments.results.comparison import Comparison as Comparison
from keras_scaled_l2.experiments.results.transferring import (
    TransferResult as TransferResult,
)
from keras_scaled_l2.experiments.results.tuning import TuningResult as TuningResult
from keras_scaled_l2.experiments.transfer import transfer as transfer
from keras_scaled_l2.experiments.tune import tune as tune
