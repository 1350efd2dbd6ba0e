#!/bin/sh
# SGLang 0.5.23, written by lora-eval VERSION. Reachable from this machine only.
set -eu
cd "$(dirname "$0")"
set -a
. ./server.env
set +a
exec python3 -m sglang.launch_server \
  --model-path /models/llama \
  --served-model-name llama \
  --host 127.0.0.1 \
  --port 8001 \
  --dtype bfloat16 \
  --context-length 1024 \
  --enable-lora \
  --lora-strict-loading \
  --max-loras-per-batch 2 \
  --max-lora-rank 4 \
  --lora-target-modules k_proj q_proj v_proj \
  --lora-paths support=./adapters/support-DIGEST \
  "$@"
