#!/bin/bash
# mpiboot on Slurm: all nodes of one job become one Dask cluster.
#
#   sbatch --nodes=2 --ntasks-per-node=4 --partition=multiple slurm.sh --interface ib0
#
# sbatch's own options override the directives: --ntasks-per-node is workers per node, --cpus-per-task is CPUs per
# worker (for one CPU: --cpus-per-worker 1 after the script's name). mpiboot's options follow the script's name (mpiboot
# boot --help); a command follows `--`:
#
#   sbatch --nodes=2 slurm.sh -- python analysis.py
#
# The environment is that of --env PREFIX, else the active one. Copy and edit this file freely, for example to add a
# `module load`; keep the directives. --propagate=NONE: the login node's limits, such as `ulimit -t`, stay there.
#SBATCH --job-name=mpiboot
#SBATCH --comment=mpiboot
#SBATCH --signal=B:USR1@120
#SBATCH --no-requeue
#SBATCH --no-kill
#SBATCH --propagate=NONE
batch_system=slurm

trap '' USR1 # boot handles this signal; before boot does, the walltime's signal must not end this script

# From here to the end, all job scripts are the same: find the environment's Python, and start `mpiboot boot` with it.
eval "${MPIBOOT_SETUP-}" # the site's `setup` lines, such as `module load openmpi`
prefix=${VIRTUAL_ENV:-${CONDA_PREFIX-}}
before=:$PATH: # of two activated environments, the last one is first on the PATH
before=${before%%":${CONDA_PREFIX:-/none}/bin:"*}:
[[ $before == ":$PATH::" || $before == *":${VIRTUAL_ENV:-/none}/bin:"* ]] || prefix=${CONDA_PREFIX-}
arguments=("$@")
for ((i = 0; i < $#; i++)); do
    case ${arguments[i]} in
    --) break ;;
    --env) prefix=${arguments[i + 1]-} ;;
    --env=*) prefix=${arguments[i]#--env=} ;;
    esac
done
prefix=${prefix/#\~\//${HOME-}/} # in quotes, or after =, no shell has expanded it
if [ ! -x "$prefix/bin/python" ]; then
    if [ -n "$prefix" ]; then echo "mpiboot: $prefix/bin/python is not an executable file on $(hostname)."; else
        echo "mpiboot: no environment is active on $(hostname), and --env is not given."; fi >&2
    echo "Add --env PREFIX after the script's name; all nodes must see that folder." >&2
    exit 2
fi
# -I: a secrets.py in the working directory must not replace Python's own module.
exec "$prefix/bin/python" -I -m mpiboot boot --batch-system "$batch_system" "$@"
