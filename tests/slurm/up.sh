#!/usr/bin/env bash
# A Slurm of one node for the tests beside this file: munged, slurmctld and slurmd from Debian's packages, started by
# hand (no systemd, no database), as root. Everything is in one folder; /etc and a Slurm that is there are left alone.
#
#   up.sh install   Debian's slurm-wlm and munge, where they are missing
#   up.sh up        writes the configuration and starts the daemons; a second time it changes nothing
#   up.sh env       what a shell needs to talk to them:  eval "$(tests/slurm/up.sh env)"
#   up.sh down      cancels what is queued and ends the daemons that `up` started
set -euo pipefail

HOME_OF_IT=${XCLS_SLURM:-/var/tmp/xcls-slurm}
PORT=${XCLS_SLURM_PORT:-17817}
HOST=$(hostname -s)
export SLURM_CONF=$HOME_OF_IT/slurm.conf

fail() { echo "up.sh: $*" >&2; exit 1; }

installed() { for name in slurmctld slurmd sbatch munged; do command -v $name >/dev/null || return 1; done; }

install() {
    if installed; then return; fi
    [ "$(id -u)" = 0 ] || fail "slurm-wlm and munge are missing, and only root can install them"
    local policy=/usr/sbin/policy-rc.d ours=""
    if [ ! -e $policy ]; then  # the packages would start services of their own
        printf '#!/bin/sh\nexit 101\n' >$policy && chmod +x $policy && ours=1
    fi
    local code=0
    { apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends slurm-wlm munge; } >&2 || code=$?
    if [ -n "$ours" ]; then rm $policy; fi
    [ $code = 0 ] || fail "apt-get could not install slurm-wlm and munge"
}

configure() {
    mkdir -p "$HOME_OF_IT/state" "$HOME_OF_IT/spool"
    chmod 755 "$HOME_OF_IT"
    [ -s "$HOME_OF_IT/munge.key" ] || (umask 077; head -c 128 /dev/urandom >"$HOME_OF_IT/munge.key")
    # The four pretend GPUs are character devices that every machine has: Slurm then sets CUDA_VISIBLE_DEVICES for a job.
    printf "NodeName=$HOST Name=gpu File=%s\n" /dev/null /dev/zero /dev/full /dev/random >"$HOME_OF_IT/gres.conf"
    cat >"$SLURM_CONF" <<CONF
ClusterName=xcls
SlurmctldHost=$HOST(127.0.0.1)
SlurmUser=root
SlurmdUser=root
SlurmctldPort=$PORT
SlurmdPort=$((PORT + 1))
AuthType=auth/munge
# A requeued job starts again only when its old credential has run out: 120 s unless told.
AuthInfo=socket=$HOME_OF_IT/munge.socket,cred_expire=5
StateSaveLocation=$HOME_OF_IT/state
SlurmdSpoolDir=$HOME_OF_IT/spool
SlurmctldPidFile=$HOME_OF_IT/slurmctld.pid
SlurmdPidFile=$HOME_OF_IT/slurmd.pid
SlurmctldLogFile=$HOME_OF_IT/slurmctld.log
SlurmdLogFile=$HOME_OF_IT/slurmd.log
# In a container: no cgroups, no binding to cores. And no accounting, so \`sacct\` answers nothing, as on many a cluster.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
# Schedule at once instead of every minute; more processors than are there (a job sleeps much of its time in tests).
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0,bf_interval=2
SlurmdParameters=config_overrides
ReturnToService=2
MessageTimeout=60
# What the tests are about: a job of 'high' takes the place of one of 'low', which gets its own --signal and GraceTime;
# an administrator's requeue sends SIGTERM and, KillWait later, SIGKILL.
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
KillWait=5
GresTypes=gpu
NodeName=$HOST NodeAddr=127.0.0.1 CPUs=8 RealMemory=16000 Gres=gpu:4 State=UNKNOWN
PartitionName=low  Nodes=$HOST Default=YES MaxTime=INFINITE PriorityTier=1  PreemptMode=REQUEUE GraceTime=30
PartitionName=high Nodes=$HOST Default=NO  MaxTime=INFINITE PriorityTier=10 PreemptMode=OFF
CONF
}

running() {  # running NAME: is the process in NAME's pid file alive, and that daemon?
    local pid
    pid=$(cat "$HOME_OF_IT/$1.pid" 2>/dev/null) &&
        [ "$(awk '/^Name:/ {n = $2} /^State:/ {s = $2} END {if (s != "Z") print n}' "/proc/$pid/status" 2>/dev/null)" = "$1" ]
}

until_true() {  # until_true WHAT COMMAND...: waits half a minute at most
    local what=$1 end=$((SECONDS + 30))
    shift
    until "$@" >/dev/null 2>&1; do
        if [ $SECONDS -gt $end ]; then
            tail -n 15 "$HOME_OF_IT"/*.log >&2 || true
            fail "$what did not come up; the logs are in $HOME_OF_IT"
        fi
        sleep 0.2
    done
}

munge_works() { munge -S "$HOME_OF_IT/munge.socket" -n | unmunge -S "$HOME_OF_IT/munge.socket"; }
controller_works() { scontrol ping | grep -q UP; }
node_works() { sinfo -h -N -o %T | grep -Eqx 'idle|mixed|allocated'; }

up() {
    [ "$(id -u)" = 0 ] || fail "the daemons need root"
    installed || fail "Slurm is not installed: $0 install"
    if running munged && running slurmctld && running slurmd; then return; fi
    down
    configure
    munged --key-file="$HOME_OF_IT/munge.key" --socket="$HOME_OF_IT/munge.socket" --pid-file="$HOME_OF_IT/munged.pid" \
        --log-file="$HOME_OF_IT/munged.log" --seed-file="$HOME_OF_IT/munge.seed" --force
    until_true munged munge_works
    slurmctld -c
    until_true slurmctld controller_works
    slurmd -N "$HOST"
    until_true "the node" node_works
}

stop() {  # stop NAME: ends the daemon, first gently
    running "$1" || return 0
    local pid
    pid=$(cat "$HOME_OF_IT/$1.pid")
    kill "$pid"
    for _ in $(seq 50); do running "$1" || return 0; sleep 0.1; done
    kill -9 "$pid"
}

down() {
    if running slurmctld; then timeout 10 scancel --user="$(id -un)" || true; sleep 1; fi
    stop slurmd
    stop slurmctld
    stop munged
}

case ${1:-} in
install | up | down) "$1" ;;
env) printf 'export SLURM_CONF=%q\n' "$SLURM_CONF" ;;
*) fail "one of install, up, env, down is needed" ;;
esac
