#!/bin/bash
# mpiboot on Slurm: all nodes of one job become one Dask cluster.
#
#   sbatch --nodes=2 --ntasks-per-node=4 --partition=multiple slurm.sh --interface ib0
#
# sbatch's own options override the directives: --ntasks-per-node is workers per node, --cpus-per-task is CPUs per
# worker. What follows the script's name are mpiboot's options (mpiboot boot --help). The environment is that of
# --env PREFIX, else the active one. Copy and edit this file freely, for a `module load` say.
#SBATCH --job-name=mpiboot
#SBATCH --comment=mpiboot
#SBATCH --signal=B:USR1@120
#SBATCH --no-requeue
#SBATCH --no-kill

trap '' USR1 # boot acts on it; until it can, the walltime's signal must not end this script
eval "${MPIBOOT_SETUP-}" # the site's `setup` lines, such as `module load openmpi`

prefix=${VIRTUAL_ENV:-$CONDA_PREFIX}
arguments=("$@")
for ((i = 0; i < $#; i++)); do
    case ${arguments[i]} in
    --) break ;;
    --env) prefix=${arguments[i + 1]} ;;
    --env=*) prefix=${arguments[i]#--env=} ;;
    esac
done
if [ ! -x "$prefix/bin/python" ]; then
    echo "mpiboot: ${prefix:-no environment is active and --env is not given}: no bin/python there on $(hostname)." \
        "Give this script --env PREFIX, a folder that all nodes see." >&2
    exit 2
fi
# -I: a secrets.py in the folder of the submit must not stand in for Python's own.
exec "$prefix/bin/python" -I -m mpiboot boot "$@"
