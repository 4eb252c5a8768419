#!/usr/bin/env bash
# The body of every job: make, here. Told of its end (time limit, preemption) it lets the stage keep its state, and queues again.
set -u
stage=$1 asked=$2 prelude=$3
shift 3
again=
trap 'again=1; kill -TERM "$child" 2>/dev/null' USR1 # so many seconds before the time limit, see submit.py
trap 'kill -TERM "$child" 2>/dev/null' TERM          # preempted: Slurm queues the job again by itself
echo "== $stage on $(hostname), job $SLURM_JOB_ID, $(date -Is)"
set +u # of a site's own lines
if [ -n "$prelude" ]; then eval "$prelude" || exit; fi
set -u
"$@" &
child=$!
while :; do # a trap ends the first wait
    wait "$child"
    code=$?
    kill -0 "$child" 2>/dev/null || break
done
if [ -n "$again" ] && [ "${SLURM_RESTART_COUNT:-0}" -lt 20 ]; then # a stage that never gets further does not go on for ever
    echo "== $stage: its time is nearly up; it goes on in the same job, queued again"
    scontrol requeue "$SLURM_JOB_ID"
    sleep 60 & # Slurm ends this script
    wait
    exit 0
fi
if [ "$code" != 0 ]; then
    echo "== $stage failed (exit $code). It had asked for $asked: if it was killed for memory or time," \
        "raise that in slurm/stages.tsv." >&2
fi
exit "$code"
