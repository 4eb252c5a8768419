#!/usr/bin/env bash
# The body of every job: make, on this node. Near its time limit a stage saves its state and the job is queued again.
# job.sh STAGE REQUESTED PRELUDE MAKE... -- FILES: makes all files, or in a job array the one at the index of the task.
set -u -o pipefail
stage=$1 requested=$2 prelude=$3
shift 3
make=()
while [ "$1" != -- ]; do
    make+=("$1")
    shift
done
shift
if [ -n "${SLURM_ARRAY_TASK_ID:-}" ]; then set -- "${@:SLURM_ARRAY_TASK_ID+1:1}"; fi
requeue= terminated=
trap 'requeue=1; kill -TERM "$child" 2>/dev/null' USR1 # before the time limit, see WARNING in submit.py
trap 'terminated=1; kill -TERM "$child" 2>/dev/null' TERM # preempted: Slurm queues the job again
echo "== $stage on ${SLURMD_NODENAME:-$(hostname)}, job $SLURM_JOB_ID, $(date -Is), requested $requested"
set +u +o pipefail # the prelude of a cluster may use unset variables
if [ -n "$prelude" ]; then eval "$prelude" || exit; fi
set -u -o pipefail
"${make[@]}" "$@" &
child=$!
while :; do # a trap ends the first wait
    wait "$child"
    code=$?
    kill -0 "$child" 2>/dev/null || break
done
if [ -n "$requeue" ] && [ "$code" != 0 ] && [ "${SLURM_RESTART_COUNT:-0}" -lt 20 ]; then # 20: without progress, stop
    echo "== $stage: the time limit is near; the same job is queued again and resumes"
    scontrol requeue "$SLURM_JOB_ID"
    sleep 60 & # Slurm ends this script
    wait
    exit 0
fi
if [ -n "$terminated" ] || [ "$code" = 143 ]; then # make may end by the signal before this shell receives it
    echo "== $stage: terminated by Slurm: preempted, cancelled, or out of time"
elif [ "$code" != 0 ]; then
    echo "== $stage failed (exit $code). If Slurm killed it for memory or time, request more in slurm/stages.tsv." >&2
fi
exit "$code"
