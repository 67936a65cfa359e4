"""Where curves are watched. Each tracker is the same few lines; only rank 0 has any."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, assert_never

from distributed_ft.artifacts import RunDirectory
from distributed_ft.config.schema import RunConfig
from distributed_ft.errors import ConfigError


class Tracker(Protocol):
    """Scalars by step, texts, and the run's settings."""

    def scalars(self, step: int, values: dict[str, float]) -> None: ...
    def text(self, step: int, tag: str, text: str) -> None: ...
    def settings(self, values: dict[str, Any]) -> None: ...
    def close(self) -> None: ...


_NOT_TRAINED_BY = ("name", "runs_dir", "checkpoint", "evaluation", "tracking")  # would crowd out what is


def _is_word(value: Any) -> bool:
    """Of what TensorBoard makes a list to choose from, where a number becomes a range."""
    return isinstance(value, bool) or not isinstance(value, int | float)


def _as_written(value: Any) -> str:
    """As in a run.yaml: true, null, [0.9, 0.95]."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


class TensorBoard:
    """Event files in the run directory. A resumed run hides what was logged after the step it resumes from."""

    def __init__(self, directory: Path, first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(directory), purge_step=first_step, flush_secs=10)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        for tag, value in values.items():
            self.writer.add_scalar(tag, value, step)

    def text(self, step: int, tag: str, text: str) -> None:
        self.writer.add_text(tag, text, step)

    def settings(self, values: dict[str, Any]) -> None:
        """For the HParams tab. Only this run's values: without a list of columns in any run, TensorBoard makes one over
        all runs, those that differ first, and takes every scalar for a metric. (Of several lists it reads one.)"""
        from torch.utils.tensorboard.summary import hparams

        trained_by = {k: v for k, v in values.items() if k.split(".")[0] not in _NOT_TRAINED_BY}
        plain = {k: _as_written(v) if _is_word(v) else v for k, v in trained_by.items()}
        _, began, ended = hparams(plain, {})
        file_writer = self.writer._get_file_writer()
        for summary in (began, ended):
            file_writer.add_summary(summary)

    def close(self) -> None:
        self.writer.close()


class WandB:
    """Weights & Biases; WANDB_MODE=offline works. A resumed run continues the same W&B run."""

    def __init__(self, run: RunDirectory) -> None:
        wandb = _optional("wandb")
        self.run = wandb.init(project="distributed_ft", name=run.name, id=run.name, dir=str(run.path), resume="allow")

    def scalars(self, step: int, values: dict[str, float]) -> None:
        self.run.log(values, step=step)

    def text(self, step: int, tag: str, text: str) -> None:
        self.run.summary[tag] = text

    def settings(self, values: dict[str, Any]) -> None:
        self.run.config.update(values, allow_val_change=True)

    def close(self) -> None:
        self.run.finish()


class MLflow:
    """MLflow; the tracking server is MLFLOW_TRACKING_URI, by default files in the run directory."""

    def __init__(self, run: RunDirectory) -> None:
        self.mlflow = _optional("mlflow")
        if not self.mlflow.is_tracking_uri_set():
            self.mlflow.set_tracking_uri(f"sqlite:///{run.path / 'mlflow.db'}")
        self.mlflow.set_experiment("distributed_ft")
        self.mlflow.start_run(run_name=run.name)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        self.mlflow.log_metrics({tag.replace(" ", "_"): value for tag, value in values.items()}, step=step)

    def text(self, step: int, tag: str, text: str) -> None:
        self.mlflow.log_text(text, f"{tag}.md")

    def settings(self, values: dict[str, Any]) -> None:
        named = {key.replace("[", ".").replace("]", ""): value for key, value in values.items()}  # it takes no brackets
        self.mlflow.log_params({key: str(value)[:500] for key, value in named.items()})

    def close(self) -> None:
        self.mlflow.end_run()


def open_trackers(config: RunConfig, run: RunDirectory, first_step: int) -> Sequence[Tracker]:
    """The trackers that `tracking` names. Raises ConfigError when one is not installed."""
    trackers: list[Tracker] = []
    for name in config.tracking:
        match name:
            case "tensorboard":
                trackers.append(TensorBoard(run.tensorboard, first_step))
            case "wandb":
                trackers.append(WandB(run))
            case "mlflow":
                trackers.append(MLflow(run))
            case _:
                assert_never(name)
    return trackers


def check_installed(names: Sequence[str]) -> None:
    """Raises ConfigError for a tracker whose package is missing; cheap, for `dft check`."""
    for name in names:
        if name != "tensorboard":
            _optional(name)


def _optional(package: str) -> Any:
    import importlib

    try:
        return importlib.import_module(package)
    except ImportError:
        raise ConfigError(f"tracking: {package!r} is not installed; `pip install {package}` or remove it") from None
