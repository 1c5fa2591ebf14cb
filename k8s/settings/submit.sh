#!/bin/bash
# submit.sh ADDRESS ID COMMAND...: give a Ray cluster a job, follow it, and end with 0 if and only if it succeeded.
# Given again with the same ID, it follows the job that is there, whatever COMMAND says. Ends with 2 where it cannot begin.
#
# `ray job submit` waits and ends with 1 where the job failed, but with 0 where it was stopped or its log broke off before its end;
# `ray job logs --follow` ends with 0 however the job ended. So in the end the cluster is asked.
set -u
if (($# < 3)); then
  echo "usage: submit.sh ADDRESS ID COMMAND...; got $# argument(s)" >&2
  exit 2
fi
if ! command -v ray >/dev/null; then
  echo "\`ray\` must be on PATH, got none; where the repository has its environment: export PATH=\"\$PWD/.venv/bin:\$PATH\"" >&2
  exit 2
fi
address=$1 id=$2
shift 2

# a dashboard answers some time after its head is ready; where it never does, the next command says why
for attempt in {1..30}; do
  if reason=$(ray job list --address "$address" 2>&1 >/dev/null); then break; fi
  if ((attempt == 1)); then
    echo "waiting up to 150 s for Ray at $address; a tunnel that is down or another token does not mend itself: ${reason##*$'\n'}" >&2
  fi
  sleep 5
done
if ray job status --address "$address" "$id" >/dev/null 2>&1; then
  echo "job $id is there already, and is followed; another job needs another ID" >&2
  ray job logs --address "$address" --follow "$id" || exit 1
else
  ray job submit --address "$address" --submission-id "$id" -- "$@" || exit 1
fi
status=$(ray job status --address "$address" "$id") || exit 1
printf '%s\n' "$status"
[[ $status == *"Job '$id' succeeded"* ]]
