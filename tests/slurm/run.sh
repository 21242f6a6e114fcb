#!/usr/bin/env bash
# Test the wrappers under a real Slurm, whose two nodes are both this machine: bash tests/slurm/run.sh [pytest options]
#
# Installs slurm-wlm and munge if they are missing (Debian or Ubuntu, root or passwordless sudo), starts them as this
# user on free ports in a temporary folder, runs the tests of this folder, and takes all down again. Where Slurm cannot
# be had it says so and exits 0. A log of the daemons is printed when they do not start.
set -euo pipefail
repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
# shellcheck source=src/scripts/environment.sh
. "$repo/src/scripts/environment.sh"

not_here() {
    echo "the wrappers are NOT tested under Slurm here: $1"
    exit 0
}

install_slurm() {
    command -v apt-get >/dev/null || not_here "it is not installed, and there is no apt-get to install it"
    local as_root=()
    if [ "$(id -u)" != 0 ]; then
        sudo -n true 2>/dev/null || not_here "it is not installed, and installing it takes root"
        as_root=(sudo -n)
    fi
    echo "installing slurm-wlm and munge"
    # RUNLEVEL=1: without the machine-wide services that the packages would start.
    as_root+=(env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get)
    local install=("${as_root[@]}" install -qq --no-install-recommends slurm-wlm munge)
    "${install[@]}" >"$cluster/apt.log" 2>&1 ||
        { "${as_root[@]}" update && "${install[@]}"; } >"$cluster/apt.log" 2>&1 ||
        { tail -n 20 "$cluster/apt.log"; not_here "apt-get could not install slurm-wlm and munge"; }
}

start() { # NAME COMMAND...: in the background, its output to NAME.log
    "${@:2}" >>"$cluster/$1.log" 2>&1 &
    daemons+=($!)
}

wait_until() { # SECONDS COMMAND...
    for ((tenths = 0; tenths < 10 * $1; tenths++)); do
        "${@:2}" >/dev/null 2>&1 && return
        sleep 0.1
    done
    return 1
}

no_jobs() { [ -z "$(squeue --noheader --states=all --format=%t | grep -E '^(PD|R|CG|S|CF|SO)$')" ]; }
idle() { [ "$(sinfo --noheader --format=%t | sort -u)" = idle ]; }

take_down() {
    trap - EXIT INT TERM
    if [ "${#daemons[@]}" -gt 0 ]; then
        # In an `if`: what fails here, or takes too long, must not keep the daemons from being ended.
        if scancel --quiet --user="$(id -un)" 2>/dev/null; then wait_until 40 no_jobs || true; fi
        kill "${daemons[@]}" 2>/dev/null || true
        wait
    fi
    rm -rf "$cluster"
}

unset "${!SLURM_@}" "${!SBATCH_@}"
PATH=$PATH:/usr/sbin:/sbin
daemons=()
cluster=$(mktemp -d /tmp/asarm-slurm-XXXXXX)
trap take_down EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

for program in munged munge slurmctld slurmd sbatch srun scontrol; do
    command -v "$program" >/dev/null || { install_slurm && break; }
done
use_environment test

ports() { "$python" -c '
import socket
sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
print(*(s.getsockname()[1] for s in sockets))'; }
read -r controller_port first_port second_port < <(ports)
host=$(hostname -s)
user=$(id -un)
chmod 755 "$cluster"
mkdir "$cluster/state" "$cluster/spool-first" "$cluster/spool-second"
head -c 1024 /dev/urandom >"$cluster/munge.key"
chmod 600 "$cluster/munge.key"
# cred_expire: a requeued job waits that long. config_overrides: more CPUs than there are, for jobs that ask for four.
# The nodes' names are none that can be looked up: jobs on both are given MASTER_ADDR.
cat >"$cluster/slurm.conf" <<END
ClusterName=asarm
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$controller_port
SlurmUser=$user
SlurmdUser=$user
AuthType=auth/munge
AuthInfo=socket=$cluster/munge.socket,cred_expire=10
StateSaveLocation=$cluster/state
SlurmdSpoolDir=$cluster/spool-%n
SlurmctldPidFile=$cluster/slurmctld.pid
SlurmdPidFile=$cluster/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=2,bf_interval=5
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
MinJobAge=3600
NodeName=first NodeHostname=$host NodeAddr=127.0.0.1 Port=$first_port CPUs=8
NodeName=second NodeHostname=$host NodeAddr=127.0.0.1 Port=$second_port CPUs=8
PartitionName=main Nodes=first Default=YES PriorityTier=1 GraceTime=30
PartitionName=urgent Nodes=first PriorityTier=2
PartitionName=both Nodes=first,second PriorityTier=1
END
export SLURM_CONF=$cluster/slurm.conf

start munged munged --foreground --force --key-file="$cluster/munge.key" --socket="$cluster/munge.socket" \
    --pid-file="$cluster/munged.pid" --log-file="$cluster/munged.log" --seed-file="$cluster/munged.seed"
wait_until 20 munge --socket="$cluster/munge.socket" --no-input || { cat "$cluster/munged.log"; exit 1; }
start slurmctld slurmctld -D -f "$SLURM_CONF"
for node in first second; do
    start "slurmd-$node" slurmd -D -N "$node" -f "$SLURM_CONF"
done
wait_until 60 idle || { tail -n 20 "$cluster"/*.log; exit 1; }
echo "Slurm: $(sinfo --version), two nodes idle after $SECONDS s"

cd "$repo"
export OMP_NUM_THREADS=1 ASARM_TEST_SLURM=1
"$python" -m pytest tests/slurm "$@"
