#!/bin/sh
# Another machine joins the first one's Ray cluster, written by lora-eval VERSION: ./join.sh FIRST
set -eu
[ $# -eq 1 ] || { echo "usage: $0 ADDRESS_OF_THE_FIRST_MACHINE" >&2; exit 2; }
exec ray start --address "$1:6379" --block
