#!/bin/sh
# Stands in for SeaweedFS's `weed server -s3`: moto's S3, kept in memory, on the address and the port that the manifests name.
set -eu
address=127.0.0.1 port=8333
for argument in "$@"; do
    case $argument in
    -ip.bind=*) address=${argument#*=} ;;
    -s3.port=*) port=${argument#*=} ;;
    -s3.config=*) [ -r "${argument#*=}" ] ;;
    -dir=*) [ -w "${argument#*=}" ] ;;
    esac
done
exec moto_server --host "$address" --port "$port"
