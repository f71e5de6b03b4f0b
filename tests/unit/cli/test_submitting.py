def test_the_job_script_is_printed(run):
    status, out, err = run("jobscript", "slurm")
    assert (status, err) == (0, "")
    assert out.startswith("#!/bin/bash\n") and "#SBATCH --signal=B:USR1@120\n" in out
    status, out, err = run("jobscript", "nonsense")
    assert (status, out) == (2, "") and err.startswith(
        "mpiboot: there is no batch system 'nonsense'. Use one of: slurm, "
    )
