#!/bin/bash
# mpiboot on this machine alone, as a job of the local batch system.
#
#   local.sh --env PREFIX --workers-per-node 2
#
# What follows the script's name are mpiboot's options (mpiboot boot --help). It runs in the foreground;
# `mpiboot submit --batch-system local` puts it into the background.

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
    echo "mpiboot: ${prefix:-no environment is active and --env is not given}: no bin/python there." \
        "Give this script --env PREFIX." >&2
    exit 2
fi
exec "$prefix/bin/python" -I -m mpiboot boot --batch-system local "$@"
