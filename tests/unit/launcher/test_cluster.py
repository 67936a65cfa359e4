"""cluster.yaml: the shipped example is valid and complete; a mistake is one line with file, line and key."""

import re
from pathlib import Path

import pytest

from distributed_ft.errors import ConfigError
from launcher import cluster
from launcher.cluster import ClusterConfig

ROOT = Path(__file__).parents[3]
EXAMPLE = ROOT / "configs" / "cluster.yaml"


def test_the_shipped_example_is_read_and_names_every_key() -> None:
    config, file = cluster.load(EXAMPLE)
    assert file == EXAMPLE
    assert (config.partition, config.time, config.gpus_per_node) == ("gpu", "24:00:00", 4)
    assert config.setup == "ulimit -n 65536\n"
    assert config.env == {"NCCL_SOCKET_IFNAME": "ib0"}
    named = re.findall(r"^(?:# )?([a-z_]+):(?: |$)", EXAMPLE.read_text(), flags=re.M)
    assert sorted(named) == sorted(ClusterConfig.model_fields)


def test_what_is_commented_out_in_the_example_is_valid_too(tmp_path: Path) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text(re.sub(r"^# ([a-z_]+:)", r"\1", EXAMPLE.read_text(), flags=re.M))
    config, _ = cluster.load(file)
    assert config.container == "apptainer exec --nv /shared/images/train.sif"
    assert (config.processes_per_node, config.python) == (2, "/shared/envs/ft/bin/python")


def test_the_guide_shows_the_shipped_example() -> None:
    assert f"```yaml\n{EXAMPLE.read_text()}```" in (ROOT / "docs" / "slurm.md").read_text()


WRONG = {
    "partion: gpu": ("cluster.yaml:2: partion: unknown key", "did you mean 'partition'?"),
    "nodes: 0": ("cluster.yaml:2: nodes:",),
    "gpus_per_node: four": ("cluster.yaml:2: gpus_per_node:", "four"),
    "time: 30": ("cluster.yaml:2: time: 30 is not text",),
    "partition: a b": ("cluster.yaml:2: partition:", "a b"),
    "max_requeues: -1": ("cluster.yaml:2: max_requeues:", "-1"),
    "modules: cuda": ("cluster.yaml:2: modules:", "cuda"),
    "sbatch: [exclusive]": (
        "cluster.yaml:2: sbatch[0]: 'exclusive' is not an option of sbatch; write it like --exclusive",
    ),
    "env: {NCCL-DEBUG: INFO}": ("cluster.yaml:2: env.NCCL-DEBUG: is not the name of an environment variable",),
    "env: {NCCL_DEBUG: 1}": ("cluster.yaml:2: env.NCCL_DEBUG:",),
}


@pytest.mark.parametrize("line", WRONG)
def test_a_mistake_is_one_line_with_file_line_and_key(line: str, tmp_path: Path) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text(f"account: nlp\n{line}\n")
    with pytest.raises(ConfigError) as refused:
        cluster.load(file)
    (said,) = str(refused.value).splitlines()
    for words in WRONG[line]:
        assert words in said


def test_the_file_is_the_named_one_else_here_else_at_home_else_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, home = tmp_path / "here", tmp_path / "home"
    (home / ".config" / "distributed_ft").mkdir(parents=True)
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("DFT_CLUSTER", raising=False)
    assert cluster.load() == (ClusterConfig(), None)
    (home / ".config" / "distributed_ft" / "cluster.yaml").write_text("partition: at-home\n")
    assert cluster.load()[0].partition == "at-home"
    (here / "cluster.yaml").write_text("partition: here\n")
    assert cluster.load()[0].partition == "here"
    (here / "named.yaml").write_text("partition: by-environment\n")
    monkeypatch.setenv("DFT_CLUSTER", "named.yaml")
    assert cluster.load()[0].partition == "by-environment"
    assert cluster.load(here / "cluster.yaml")[0].partition == "here"
    (here / "cluster.yaml").write_text("")
    assert cluster.load(here / "cluster.yaml")[0] == ClusterConfig()
    with pytest.raises(ConfigError, match=r"gone\.yaml"):
        cluster.load(here / "gone.yaml")
