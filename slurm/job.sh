#!/usr/bin/env bash
# The body of every job: make, here. Told of its end (time limit, preemption) it lets the stage keep its state, and queues again.
set -u
stage=$1 asked=$2 prelude=$3
shift 3
again=
trap 'again=1; kill -TERM "$child" 2>/dev/null' USR1 # so many seconds before the time limit, see submit.py
trap 'kill -TERM "$child" 2>/dev/null' TERM          # preempted: Slurm queues the job again by itself
echo "== $stage on $(hostname), job $SLURM_JOB_ID, $(date -Is)"
if [ -n "$prelude" ]; then eval "$prelude" || exit; fi
"$@" &
child=$!
while :; do # a trap ends the first wait
    wait "$child"
    code=$?
    kill -0 "$child" 2>/dev/null || break
done
if [ -n "$again" ]; then
    echo "== $stage: its time is nearly up; it goes on in the same job, queued again"
    scontrol requeue "$SLURM_JOB_ID"
    sleep 60 # Slurm ends this
fi
case $code in
0) ;;
137 | 247) echo "== $stage was killed, most often for memory: it had asked for $asked. Raise it in slurm/stages.tsv." >&2 ;;
*) echo "== $stage failed (exit $code)" >&2 ;;
esac
exit "$code"
