"""`cluster.yaml`: the habits of one cluster, written once and not in run.yaml. Torch-free.

The command line beats it. It is looked for beside the working directory's runs (`./cluster.yaml`), then in
`~/.config/distributed_ft/`; DFT_CLUSTER or `--cluster FILE` names another.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError

from distributed_ft.config import document as documents
from distributed_ft.config.document import Problem
from distributed_ft.config.explain import WORD, explain
from distributed_ft.config.schema import Positive, Section
from distributed_ft.errors import ConfigError

PLACES = (Path("cluster.yaml"), Path("~/.config/distributed_ft/cluster.yaml"))

Count = Annotated[int, Field(ge=0)]
Word = Annotated[str, Field(pattern=WORD)]


class ClusterConfig(Section):
    """Every key has a default; what is left out is left to Slurm."""

    partition: Word | None = Field(None, description="Where jobs go.")
    account: Word | None = Field(None, description="Who pays.")
    qos: Word | None = Field(None, description="Quality of service.")
    time: str | None = Field(None, description='Limit of a job, in quotes: "24:00:00".')
    nodes: Positive = Field(1, description="Nodes of a job.")
    gpus_per_node: Count = Field(0, description="GPUs of a node, each with one process; 0: CPUs only.")
    processes_per_node: Positive | None = Field(None, description="Processes of a node; default: one a GPU, or one.")
    cpus_per_node: Positive | None = Field(None, description="CPUs of a node.")
    mem: Word | None = Field(None, description="Memory of a node, for example 200G.")
    signal_seconds: Positive = Field(
        180, description="How long before the end of its time a job is asked to stop: what a checkpoint takes, twice."
    )
    max_requeues: Count = Field(50, description="How often a job may be requeued before a person has to look.")
    stall_seconds: Positive = Field(600, description="How long a training may stand still before it is ended.")
    modules: tuple[Word, ...] = Field((), description="Modules to load.")
    setup: str = Field("", description="Shell lines before training, for example to activate an environment.")
    container: str = Field("", description="Prefix of the command on each node: apptainer exec --nv image.sif")
    python: str | None = Field(None, description="Python on the nodes; default: the one that runs dft.")
    sbatch: tuple[str, ...] = Field((), description="Further #SBATCH options, for example --exclusive.")
    env: dict[str, str] = Field({}, description="Environment, for example {NCCL_SOCKET_IFNAME: ib0}.")


def load(file: Path | None = None) -> tuple[ClusterConfig, Path | None]:
    """The cluster's habits and the file that they come from; without a file the defaults.

    Raises:
        ConfigError: the file named is not there, or a line for each thing in it that is wrong.
    """
    path = file or _found()
    if path is None:
        return ClusterConfig(), None
    if path.is_file() and not path.read_text(errors="replace").strip():
        return ClusterConfig(), path
    _, document = documents.read(path)
    try:
        config = ClusterConfig.model_validate_json(json.dumps(document.value))
    except ValidationError as error:
        raise ConfigError("\n".join(map(document.render, explain(error, document, ClusterConfig)))) from None
    problems = [document.render(problem) for problem in _problems(config)]
    if problems:
        raise ConfigError("\n".join(problems))
    return config, path


def _problems(config: ClusterConfig) -> Iterator[Problem]:
    """What the types cannot say."""
    for index, option in enumerate(config.sbatch):
        if not option.startswith("-") or "\n" in option:
            yield Problem(("sbatch", index), f"{option!r} is not an option of sbatch; write it like --exclusive")
    for name in config.env:
        if not name.isidentifier():
            yield Problem(("env", name), "is not the name of an environment variable")


def _found() -> Path | None:
    named = os.environ.get("DFT_CLUSTER")
    if named:
        return Path(named)
    return next((place.expanduser() for place in PLACES if place.expanduser().is_file()), None)
