"""Where the nodes of a job meet."""

import itertools

import pytest

from launcher.attempts import Job
from launcher.node import FIRST_PORT, PORTS, place_of

NODES = ("north", "east")


def test_a_node_knows_its_number_the_world_and_where_to_meet() -> None:
    place = place_of(Job("123", 2, NODES), "east", 4, "10.0.0.1")
    assert (place.node, place.num_nodes, place.num_ranks, place.host, place.id) == (1, 2, 8, "10.0.0.1", "123.2")


def test_the_nodes_of_a_heterogeneous_job_do_not_know_each_others_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_HET_SIZE", "2")
    assert place_of(Job("123", 0, NODES), "north", 4, "10.0.0.1").num_ranks is None


def test_all_nodes_of_a_start_have_the_same_port() -> None:
    job = Job("123", 1, NODES)
    assert len({place_of(job, node, 2, "10.0.0.1").port for node in NODES}) == 1


def test_ports_of_neighbouring_jobs_and_of_restarts_differ_and_stay_in_range() -> None:
    jobs, restarts = range(987_600, 987_900), range(20)
    ports = {
        (job, restart): place_of(Job(str(job), restart, NODES, job), "north", 1, "h").port
        for job, restart in itertools.product(jobs, restarts)
    }
    used = [port + one for port in ports.values() for one in (0, 1)]  # the second is the pre-flight's
    assert len(set(used)) == len(used)
    assert min(used) >= FIRST_PORT
    assert max(used) < FIRST_PORT + PORTS


@pytest.mark.parametrize(("job", "restart"), [("1", 0), ("67108863", 0), ("322", 18), ("323", 50)])
def test_no_port_leaves_the_range(job: str, restart: int) -> None:
    port = place_of(Job(job, restart, NODES), "north", 1, "h").port
    assert FIRST_PORT <= port < FIRST_PORT + PORTS - 1
    assert port % 2 == 0
