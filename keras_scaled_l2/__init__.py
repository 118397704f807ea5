"""Count-aware L2 regularizers for Keras 3, and the numbers that explain them."""

import pathlib as _pathlib
import sys as _sys

__version__ = "0.1.0"

# The command loads what it needs by itself, most of it only after its arguments are
# checked: with Keras loaded here, `--help` would take seconds, and the one line of an
# error would stand below TensorFlow's banner.
_is_command = _pathlib.Path(_sys.argv[0]).stem == "keras-scaled-l2" or _sys.orig_argv[
    1:3
] == ["-m", "keras_scaled_l2"]

if not _is_command:
    from keras_scaled_l2.attach import attach as attach
    from keras_scaled_l2.attach import bind as bind
    from keras_scaled_l2.attach import detach as detach
    from keras_scaled_l2.attach import penalised as penalised
    from keras_scaled_l2.callbacks import ApplyL2 as ApplyL2
    from keras_scaled_l2.callbacks import CostMonitor as CostMonitor
    from keras_scaled_l2.regularizers import HalfLifeL2 as HalfLifeL2
    from keras_scaled_l2.regularizers import PriorL2 as PriorL2
    from keras_scaled_l2.regularizers import SampleL2 as SampleL2
    from keras_scaled_l2.regularizers import ScaledL2 as ScaledL2
    from keras_scaled_l2.report import cost_report as cost_report
    from keras_scaled_l2.units import convert as convert
