"""What Slurm's words mean: limits of time, GPUs of a node."""

import pytest

from distributed_ft.errors import ConfigError
from launcher import slurm

MINUTE, HOUR, DAY = 60, 3600, 86_400


@pytest.mark.parametrize(
    ("limit", "seconds"),
    [
        ("30", 30 * MINUTE),
        ("0", 0),
        ("30:15", 30 * MINUTE + 15),
        ("4:00:00", 4 * HOUR),
        ("100:00:01", 100 * HOUR + 1),
        ("2-12", 2 * DAY + 12 * HOUR),
        ("2-12:30", 2 * DAY + 12 * HOUR + 30 * MINUTE),
        ("2-12:30:05", 2 * DAY + 12 * HOUR + 30 * MINUTE + 5),
        ("infinite", None),
        ("UNLIMITED", None),
        ("n/a", None),
    ],
)
def test_a_limit_is_read_as_slurm_reads_it(limit: str, seconds: int | None) -> None:
    assert slurm.seconds_of(limit) == seconds


@pytest.mark.parametrize("limit", ["", "tomorrow", "4h", "1:2:3:4", "-5", "1.5", "2-", "1::2", " 30"])
def test_what_is_no_limit_is_refused_with_the_forms_that_are(limit: str) -> None:
    with pytest.raises(ConfigError, match="is no time; write minutes, H:MM:SS or D-H:MM:SS"):
        slurm.seconds_of(limit)


@pytest.mark.parametrize(
    ("gres", "count"),
    [
        ("(null)", 0),
        ("gpu:4", 4),
        ("gpu:a100:8", 8),
        ("gpu:a100:4(S:0-1)", 4),
        ("gpu:a100:4(S:0-1),gpu:2", 6),
        ("gpu:h100:8(S:0,1),nvme:2", 8),
        ("shard:16", 0),
        ("license:3", 0),
    ],
)
def test_the_gpus_of_a_node_are_counted(gres: str, count: int) -> None:
    assert slurm._gpus(gres) == count
