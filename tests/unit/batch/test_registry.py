from mpiboot.batch import registry


def test_variables_of_a_job_are_told_from_those_of_a_site():
    names = ("SLURM_JOB_ID", "SLURM_CONF", "SBATCH_ACCOUNT", "HOME")
    assert [name for name in names if registry.describes_a_job(name)] == ["SLURM_JOB_ID"]
