# shellcheck shell=bash
# Sourced by the wrappers, with `repo` set to the repository. `use_environment` sets `python` to an interpreter that
# has the packages: that of the active environment, if it has them, or that of $repo/.venv, made on first use.
#
# $repo/.venv is ready when its asarm-requirements.txt, a copy made after installing, equals requirements.txt.
# asarm-installing is in it while packages are being installed; found without an installation under way, it shows
# that one was interrupted, and .venv is made again.
#
# `evaluate` becomes an evaluation by as many processes as were asked for.

venv="${repo:?is set by the script that sources this}/.venv"
export PYTHONPATH="$repo/src${PYTHONPATH:+:$PYTHONPATH}"

has_packages() { # PYTHON [EXTRA...]: does it have what pyproject.toml asks for?
    "$1" "$repo/src/scripts/has_packages.py" "${@:2}" 2>/dev/null
}

venv_ready() { # [EXTRA...]
    [ -e "$venv/asarm-installing" ] && return 1
    if [ -e "$venv/asarm-requirements.txt" ]; then
        cmp -s "$repo/requirements.txt" "$venv/asarm-requirements.txt"
    else
        has_packages "$venv/bin/python" "$@" # made by hand
    fi
}

make_venv() {
    local base=${PYTHON:-python3}
    if ! "$base" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
        echo "$base cannot make a virtual environment: install Python 3.10 or later with its venv module," \
            "or name one in PYTHON, or activate an environment with the packages of requirements.txt" >&2
        return 2
    fi
    if [ -e "$venv/asarm-installing" ]; then
        echo "an installation in $venv was interrupted: starting it again" >&2
        rm -rf "$venv"
    fi
    echo "installing the packages of requirements.txt in $venv (only this once)" >&2
    mkdir -p "$venv" &&
        touch "$venv/asarm-installing" &&
        { [ -x "$venv/bin/python" ] || "$base" -m venv "$venv"; } &&
        "$venv/bin/python" -m pip install --quiet -r "$repo/requirements.txt" &&
        "$venv/bin/python" -m pip install --quiet --no-deps -e "$repo" &&
        cp "$repo/requirements.txt" "$venv/asarm-requirements.txt" &&
        rm "$venv/asarm-installing"
}

use_environment() { # [EXTRA...]: extras of pyproject.toml that are needed, too
    for python in ${VIRTUAL_ENV:+"$VIRTUAL_ENV/bin/python"} ${CONDA_PREFIX:+"$CONDA_PREFIX/bin/python"} python3; do
        has_packages "$python" "$@" && return
    done
    python="$venv/bin/python"
    venv_ready "$@" && return
    (
        # One at a time: whoever waited finds the work done.
        if command -v flock >/dev/null; then flock 9 || true; fi
        venv_ready "$@" || make_venv
    ) 9>"$repo/.venv.lock"
}

evaluate() { # COMMAND [OPTION...] of asarm. exec, so that signals reach it; srun passes them on to its tasks.
    local tasks=${SLURM_NTASKS:-1} number=0 count=1
    # An array shares the work if it is one of this script, and not of a script that calls it with options of its own.
    if [ "${SLURM_ARRAY_TASK_COUNT:-1}" -gt 1 ] && [ "${0##*/}" = slurm_script ]; then
        local step=${SLURM_ARRAY_TASK_STEP:-1}
        count=$SLURM_ARRAY_TASK_COUNT
        number=$(((SLURM_ARRAY_TASK_ID - SLURM_ARRAY_TASK_MIN) / step))
        if [ "$SLURM_ARRAY_TASK_MAX" -ne $((SLURM_ARRAY_TASK_MIN + (count - 1) * step)) ]; then
            echo "an array shares the work by numbers like 0-7, not $SLURM_ARRAY_TASK_COUNT between" \
                "$SLURM_ARRAY_TASK_MIN and $SLURM_ARRAY_TASK_MAX; --array=0-N or one job does what others left" >&2
            exit 2
        fi
    fi
    if [ "$tasks" -gt 1 ]; then
        export ASARM_FIRST_RANK=$((number * tasks)) WORLD_SIZE=$((count * tasks))
        # shellcheck disable=SC2016 # the variables are those of each task
        exec srun --kill-on-bad-exit=0 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" bash -c \
            'RANK=$((ASARM_FIRST_RANK + SLURM_PROCID)) LOCAL_RANK=$SLURM_LOCALID exec "$@"' \
            task "$python" -m asarm "$@"
    elif [ "${NPROC_PER_NODE:-1}" -gt 1 ]; then
        if [ "$count" -gt 1 ]; then
            echo "an array starts its processes as tasks: --ntasks-per-node=$NPROC_PER_NODE, not NPROC_PER_NODE" >&2
            exit 2
        fi
        exec "$python" -m torch.distributed.run --standalone --nproc_per_node="$NPROC_PER_NODE" -m asarm "$@"
    elif [ "$count" -gt 1 ]; then
        export RANK=$number WORLD_SIZE=$count LOCAL_RANK=0
    fi
    exec "$python" -m asarm "$@"
}
