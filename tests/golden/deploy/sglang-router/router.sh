#!/bin/sh
# The router of SGLang 0.5.23, written by lora-eval VERSION. Reachable from this machine only.
#   ./router.sh http://FIRST:8001 http://SECOND:8001 ...
set -eu
[ $# -gt 0 ] || { echo "usage: $0 WORKER_URL..." >&2; exit 2; }
exec python3 -m sglang_router.launch_router \
  --host 127.0.0.1 \
  --port 8000 \
  --policy cache_aware \
  --worker-urls "$@"
