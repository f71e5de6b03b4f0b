#!/bin/bash
# mpiboot on this machine alone, as a job of the local batch system.
#
#   local.sh --env PREFIX --workers-per-node 2
#
# mpiboot's options follow the script's name (mpiboot boot --help). The script runs in the foreground;
# `mpiboot submit --batch-system local` runs it in the background.
batch_system=local

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
