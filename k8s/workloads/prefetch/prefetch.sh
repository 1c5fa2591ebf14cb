#!/bin/bash
# Fetch everything that /prefetch/list.txt names; what is there already is not fetched again.
set -euo pipefail
entries=$(grep -v -e '^#' -e '^[[:space:]]*$' /prefetch/list.txt || true)
if [[ -z $entries ]]; then
  echo "list.txt must name what is to be fetched, got only comments; uncomment a line, or write one" >&2
  exit 2
fi
while read -r kind repository revision folder; do
  if ! [[ $revision =~ ^[0-9a-f]{40}$ ]]; then
    echo "a revision must be a commit of 40 hex digits, got '$revision' for $repository; look it up and write it into list.txt" >&2
    exit 2
  fi
  echo "fetching $kind $repository at $revision into /models/$folder"
  hf download --repo-type "$kind" --revision "$revision" --local-dir "/models/$folder" "$repository" </dev/null
done <<<"$entries"
