"""Event files for TensorBoard, written without TensorFlow."""

from __future__ import annotations

import contextlib
import itertools
import os
import pathlib
import socket
import time
import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence

from tensorboard.compat.proto import (
    event_pb2,
    summary_pb2,
    tensor_pb2,
    tensor_shape_pb2,
    types_pb2,
)
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.custom_scalar import metadata as layout_metadata
from tensorboard.plugins.hparams import api_pb2, plugin_data_pb2
from tensorboard.plugins.hparams import metadata as hparams_metadata
from tensorboard.summary.writer.record_writer import RecordWriter

_serial = itertools.count()


class EventFile:
    """One event file in a directory; TensorBoard shows the directory as a run.

    ``tensorboard.summary.Writer`` would do, but it loads TensorFlow's file system
    wherever TensorFlow is installed, and writes from a thread that loses errors.

    Args:
        directory: Directory of the run; made if it does not exist.
        clock: Seconds since 1970, the wall time of the events.

    Raises:
        OSError: If the directory or the file cannot be written.
    """

    def __init__(
        self, directory: str | os.PathLike[str], clock: Callable[[], float] = time.time
    ) -> None:
        self._clock = clock
        folder = pathlib.Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        # TensorBoard reads files by name: those of one second in the order of making.
        name = (
            f"events.out.tfevents.{int(clock()):010d}.{socket.gethostname()}"
            f".{os.getpid()}.{next(_serial):06d}.scaled_l2"
        )
        self._file = (folder / name).open("wb")
        # A training that breaks off closes nothing.
        weakref.finalize(self, self._file.close)
        self._records = RecordWriter(self._file)
        self._write(event_pb2.Event(file_version="brain.Event:2"))
        self.flush()

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Write one point of each curve.

        Args:
            values: Tag -> value.
            step: Position on the step axis, in optimizer steps.
        """
        summary = summary_pb2.Summary(
            value=[
                summary_pb2.Summary.Value(tag=tag, simple_value=float(value))
                for tag, value in values.items()
            ]
        )
        self._write(event_pb2.Event(summary=summary, step=step))

    def flush(self) -> None:
        """Bring everything written so far to the disk."""
        self._file.flush()

    def close(self) -> None:
        """Flush and close the file; nothing can be written after."""
        self._file.close()

    def _write(self, event: event_pb2.Event) -> None:
        event.wall_time = self._clock()
        self._records.write(event.SerializeToString())

    def hparams(
        self, values: Mapping[str, float | str], metrics: Sequence[str]
    ) -> None:
        """Write the hyperparameters of the run, for TensorBoard's HPARAMS page.

        Args:
            values: Name -> value, the same names in all runs that share a page.
            metrics: Tags of the scalars that the page shows beside them.
        """
        experiment = api_pb2.Experiment(
            hparam_infos=[
                api_pb2.HParamInfo(
                    name=name,
                    type=(
                        api_pb2.DATA_TYPE_STRING
                        if isinstance(value, str)
                        else api_pb2.DATA_TYPE_FLOAT64
                    ),
                )
                for name, value in values.items()
            ],
            metric_infos=[
                api_pb2.MetricInfo(name=api_pb2.MetricName(tag=tag)) for tag in metrics
            ],
        )
        start = plugin_data_pb2.SessionStartInfo(start_time_secs=self._clock())
        for name, value in values.items():
            field = start.hparams[name]
            if isinstance(value, str):
                field.string_value = value
            else:
                field.number_value = value
        for tag, content in (
            (hparams_metadata.EXPERIMENT_TAG, {"experiment": experiment}),
            (hparams_metadata.SESSION_START_INFO_TAG, {"session_start_info": start}),
        ):
            data = plugin_data_pb2.HParamsPluginData(**content)
            metadata = hparams_metadata.create_summary_metadata(data)
            self._summary(tag, metadata, hparams_metadata.NULL_TENSOR)

    def layout(self, charts: Mapping[str, Mapping[str, Sequence[str]]]) -> None:
        """Write the layout of the CUSTOM SCALARS page.

        Args:
            charts: Category -> title of a chart -> regular expressions of its tags.
        """
        layout = layout_pb2.Layout()
        for category, content in charts.items():
            section = layout.category.add(title=category)
            for title, tags in content.items():
                section.chart.add(title=title).multiline.tag.extend(tags)
        self._summary(
            layout_metadata.CONFIG_SUMMARY_TAG,
            layout_metadata.create_summary_metadata(),
            tensor_pb2.TensorProto(
                dtype=types_pb2.DT_STRING,
                string_val=[layout.SerializeToString()],
                tensor_shape=tensor_shape_pb2.TensorShapeProto(),
            ),
        )

    def _summary(
        self,
        tag: str,
        metadata: summary_pb2.SummaryMetadata,
        tensor: tensor_pb2.TensorProto,
    ) -> None:
        value = summary_pb2.Summary.Value(tag=tag, metadata=metadata, tensor=tensor)
        self._write(event_pb2.Event(summary=summary_pb2.Summary(value=[value])))


class EventFiles:
    """The event files of a log directory, one a run; they never stop a training.

    Args:
        log_dir: Directory of the runs.
        first_run: The run whose file is made at once, as a check.

    Raises:
        OSError: If that file cannot be made: before training, not in it.
    """

    def __init__(self, log_dir: str, first_run: str) -> None:
        self._log_dir = log_dir
        self._files: dict[str, EventFile] = {}
        self._broken = False
        try:
            self._open(first_run)
        except OSError as error:
            raise OSError(
                f"log_dir={log_dir!r} cannot be written ({error}): expected a "
                "directory that exists or can be made. Choose another log_dir."
            ) from error

    def write(self, run: str, write: Callable[[EventFile], None]) -> None:
        """Write to a run's file and flush; a disk that fails gives one warning."""
        if self._broken:
            return
        try:
            file = self._open(run)
            write(file)
            file.flush()
        except OSError as error:
            self._broken = True
            warnings.warn(
                f"TensorBoard events in {self._log_dir!r} cannot be written any more "
                f"({error}); training goes on without them.",
                stacklevel=2,
            )

    def close(self) -> None:
        """Close all files."""
        for file in self._files.values():
            with contextlib.suppress(OSError):  # said when it was written
                file.close()
        self._files = {}

    def _open(self, run: str) -> EventFile:
        if run not in self._files:
            self._files[run] = EventFile(os.path.join(self._log_dir, run))
        return self._files[run]
