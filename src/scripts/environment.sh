# shellcheck shell=bash
# Sourced by the wrappers, with `repo` set to the repository. `use_environment` sets `python` to an interpreter that
# has the packages: that of the active environment, if it has them, or that of $repo/.venv, made on first use.
#
# $repo/.venv is ready when its asarm-requirements.txt, a copy made after installing, equals requirements.txt.
# asarm-installing is in it while packages are being installed; found without an installation under way, it shows
# that one was interrupted, and .venv is made again.

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
