#!/usr/bin/env bash
# The body of every job: make, here. Told of its end (time limit, preemption) it lets the stage keep its state, and queues again.
# job.sh STAGE ASKED PRELUDE MAKE... -- FILES: makes all files, or as a task of an array the one at its number.
set -u
stage=$1 asked=$2 prelude=$3
shift 3
make=()
while [ "$1" != -- ]; do
    make+=("$1")
    shift
done
shift
if [ -n "${SLURM_ARRAY_TASK_ID:-}" ]; then set -- "${@:SLURM_ARRAY_TASK_ID+1:1}"; fi
again= ended=
trap 'again=1; kill -TERM "$child" 2>/dev/null' USR1 # so many seconds before the time limit, see submit.py
trap 'ended=1; kill -TERM "$child" 2>/dev/null' TERM # preempted: Slurm queues the job again by itself
echo "== $stage on ${SLURMD_NODENAME:-$(hostname)}, job $SLURM_JOB_ID, $(date -Is)"
set +u # of a site's own lines
if [ -n "$prelude" ]; then eval "$prelude" || exit; fi
set -u
"${make[@]}" "$@" &
child=$!
while :; do # a trap ends the first wait
    wait "$child"
    code=$?
    kill -0 "$child" 2>/dev/null || break
done
if [ -n "$again" ] && [ "$code" != 0 ] && [ "${SLURM_RESTART_COUNT:-0}" -lt 20 ]; then # what never gets further does not go on for ever
    echo "== $stage: its time is nearly up; it goes on in the same job, queued again"
    scontrol requeue "$SLURM_JOB_ID"
    sleep 60 & # Slurm ends this script
    wait
    exit 0
fi
if [ -n "$ended" ] || [ "$code" = 143 ]; then # make may end of the signal before this shell has heard it
    echo "== $stage: told to end: preempted, cancelled, or its time was up"
elif [ "$code" != 0 ]; then
    echo "== $stage failed (exit $code). It had asked for $asked: if it was killed for memory or time," \
        "raise that in slurm/stages.tsv." >&2
fi
exit "$code"
