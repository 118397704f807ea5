"""What stands in the event files of a log directory, read by TensorBoard's reader."""

import pathlib

from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
from tensorboard.util import tensor_util


def scalars(log_dir, run="train"):
    """Tag -> [(step, value), ...] of a run, in the order of writing."""
    curves = {}
    files = sorted((pathlib.Path(log_dir) / run).glob("*scaled_l2"))
    # Two files of one second differ in the serial number only.
    for file in sorted(files, key=lambda path: int(path.name.split(".")[-2])):
        for event in EventFileLoader(str(file)).Load():
            for value in event.summary.value:
                if value.metadata.plugin_data.plugin_name == "scalars":
                    number = tensor_util.make_ndarray(value.tensor).item()
                    curves.setdefault(value.tag, []).append((event.step, number))
    return curves


def curve(log_dir, tag, run="train"):
    """The values of one curve, without their steps."""
    return [value for _, value in scalars(log_dir, run)[tag]]
