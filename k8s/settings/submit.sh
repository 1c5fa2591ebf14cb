#!/bin/bash
# submit.sh ADDRESS ID COMMAND...: give a Ray cluster a job, follow it, and end with 0 if and only if it succeeded.
# Given again with the same ID, it follows the job that is there.
#
# `ray job submit` waits and ends with 1 where the job failed, but with 0 where it was stopped or its log broke off before its end;
# `ray job logs --follow` ends with 0 however the job ended. So in the end the cluster is asked.
set -u
address=$1 id=$2
shift 2

# a dashboard answers some time after its head is ready; where it never does, the next command says why
for _ in {1..30}; do
  if ray job list --address "$address" >/dev/null 2>&1; then break; fi
  sleep 5
done
if ray job status --address "$address" "$id" >/dev/null 2>&1; then
  ray job logs --address "$address" --follow "$id" || exit 1
else
  ray job submit --address "$address" --submission-id "$id" -- "$@" || exit 1
fi
status=$(ray job status --address "$address" "$id") || exit 1
printf '%s\n' "$status"
[[ $status == *"Job '$id' succeeded"* ]]
