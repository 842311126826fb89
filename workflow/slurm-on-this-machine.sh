#!/usr/bin/env bash
# A SLURM cluster of one node, on this machine's loopback, to try the profile on.
#
#   workflow/slurm-on-this-machine.sh start | stop | status
#
# Root only, and for throw-away machines: it writes /etc/slurm/slurm.conf, where jobs look
# for it, and refuses to replace one that it has not written. Needs the Debian packages
# slurm-wlm and munge.
set -euo pipefail

conf=/etc/slurm/slurm.conf
state=/var/lib/slurm-on-this-machine
mark='# written by slurm-on-this-machine.sh'

fail() { echo "error: $*" >&2; exit 1; }

installed() {
    for program in munged slurmctld slurmd sbatch; do
        command -v "$program" > /dev/null \
            || fail "$program not found; on Debian: apt install slurm-wlm munge"
    done
}

configure() {
    if test -e "$conf" && ! grep -qF "$mark" "$conf"; then
        fail "$conf belongs to another SLURM; this script would replace it"
    fi
    mkdir -p "$state/controller" "$state/node" "$(dirname "$conf")"
    local memory cores
    cores=$(getconf _NPROCESSORS_ONLN) # nproc would heed OMP_NUM_THREADS
    memory=$(awk '/MemTotal/ {print int($2 / 1024 * 0.9)}' /proc/meminfo)
    # Loopback only: NoInAddrAny alone leaves the controller on every address.
    cat > "$conf" << CONF
$mark
ClusterName=this-machine
SlurmctldHost=localhost(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SlurmctldPort=16817
SlurmdPort=16818
StateSaveLocation=$state/controller
SlurmdSpoolDir=$state/node
SlurmctldPidFile=$state/slurmctld.pid
SlurmdPidFile=$state/slurmd.pid
SlurmctldLogFile=$state/slurmctld.log
SlurmdLogFile=$state/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
ReturnToService=2
MailProg=/bin/true
NodeName=localhost NodeAddr=127.0.0.1 CPUs=$cores RealMemory=$memory
PartitionName=cpu Nodes=localhost Default=YES State=UP
CONF
}

start() {
    installed
    if sinfo > /dev/null 2>&1; then
        echo 'SLURM is running already'
        return
    fi
    configure
    if ! pgrep -x munged > /dev/null; then
        install -d -o munge -g munge /run/munge
        su -s /bin/sh munge -c munged
    fi
    slurmctld -c
    slurmd -N localhost
    for _ in $(seq 30); do
        if sinfo -h -o %t 2> /dev/null | grep -q idle; then
            echo 'SLURM is running; partition cpu'
            return
        fi
        sleep 1
    done
    tail -n 5 "$state"/*.log >&2
    fail 'the node did not come up within 30 s'
}

stop() {
    test -e "$conf" && grep -qF "$mark" "$conf" || fail "this script started no SLURM"
    scontrol shutdown 2> /dev/null || true
    for _ in $(seq 30); do
        pgrep -x slurmctld > /dev/null || pgrep -x slurmd > /dev/null || break
        sleep 1
    done
    rm -rf "$conf" "$state"
}

test "$(id -u)" = 0 || fail 'SLURM'"'"'s daemons need root'
case "${1:-}" in
    start) start ;;
    stop) stop ;;
    status) sinfo && squeue ;;
    *) fail 'expected start, stop or status' ;;
esac
