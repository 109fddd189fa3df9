"""What starts the processes of a run says how many there are and which of them this is."""

import pytest

from ngrpo.cli.command import examine
from ngrpo.launched import Launched, follows, launched

TORCHRUN = {"TORCHELASTIC_RUN_ID": "7", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4", "RANK": "4", "LOCAL_RANK": "0"}
SRUN = {"SLURM_JOB_NAME": "train", "SLURM_NTASKS": "8", "SLURM_NNODES": "2", "SLURM_PROCID": "4", "SLURM_LOCALID": "0"}


@pytest.mark.parametrize("environment", [TORCHRUN, SRUN], ids=["torchrun", "srun"])
def test_the_first_process_of_a_second_node_is_not_the_first_of_the_run(environment):
    assert launched(environment) == Launched(world=8, nodes=2, rank=4) and follows(environment)
    first = {**environment, "RANK": "0", "SLURM_PROCID": "0"}
    assert launched(first) == Launched(world=8, nodes=2, rank=0) and not follows(first)


def test_a_shell_in_a_job_of_slurm_and_what_fabric_starts_are_no_launch():
    assert launched({**SRUN, "SLURM_JOB_NAME": "bash"}) is None
    assert launched({"WORLD_SIZE": "2"}) is None and not follows({"WORLD_SIZE": "2"})
    assert follows({"LOCAL_RANK": "1"}) and follows({"LOCAL_RANK": "0", "NODE_RANK": "1"}) and not follows({})


def test_fabric_reads_srun_as_it_is_read_here(monkeypatch):
    from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

    for name, value in {**SRUN, "SLURM_NTASKS_PER_NODE": "4"}.items():
        monkeypatch.setenv(name, value)
    theirs, ours = SLURMEnvironment(), launched(SRUN)
    assert ours and SLURMEnvironment.detect()
    assert (theirs.world_size(), theirs.global_rank()) == (ours.world, ours.rank)
    theirs.validate_settings(num_devices=ours.world // ours.nodes, num_nodes=ours.nodes)


def test_what_was_launched_is_how_many_devices_there_are_and_no_other_number_is_taken(monkeypatch):
    for name, value in {**TORCHRUN, "WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    assert examine("config", ["trainer=fsdp", "prompts_per_step=8"]).problems == []
    assert examine("config", ["trainer=fsdp", "prompts_per_step=6"]).problems == [
        "trainer.devices=4: must divide prompts_per_step=6, because whole groups stay on one device; prompts_per_step=8"
    ]
    refused = examine("config", ["trainer=fsdp", "trainer.devices=2"]).problems
    assert refused == ["trainer.devices=2: must be the 4 that were launched; leave it out"]


def test_an_offload_that_would_do_nothing_is_refused():
    (line,) = examine("config", ["trainer.cpu_offload=true"]).problems
    assert line.startswith("trainer.cpu_offload=true: only") and line.endswith("; trainer.cpu_offload=false")
