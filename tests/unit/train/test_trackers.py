"""What TensorBoard's HParams tab finds over several runs."""

from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata

from distributed_ft.train.trackers import TensorBoard


def test_a_run_writes_its_settings_and_leaves_the_columns_to_tensorboard(tmp_path: Path) -> None:
    tracker = TensorBoard(tmp_path, 1)
    tracker.settings({"optim.lr": 1e-3, "data.packing": True, "method.rank": 4, "checkpoint.every": 5, "name": "x"})
    tracker.close()
    found = EventAccumulator(str(tmp_path)).Reload().PluginTagToContent(metadata.PLUGIN_NAME)
    assert metadata.EXPERIMENT_TAG not in found  # the first run's would hide the values of all others
    began = metadata.parse_session_start_info_plugin_data(found[metadata.SESSION_START_INFO_TAG])
    assert {name: value.WhichOneof("kind") for name, value in began.hparams.items()} == {
        "optim.lr": "number_value",
        "data.packing": "string_value",
        "method.rank": "number_value",
    }
