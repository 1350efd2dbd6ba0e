#!/bin/sh
# vLLM 0.32.0, written by lora-eval VERSION. Reachable from this machine only.
set -eu
cd "$(dirname "$0")"
set -a
. ./server.env
set +a
exec python3 -m vllm.entrypoints.openai.api_server \
  --model /models/llama \
  --served-model-name llama \
  --host 127.0.0.1 \
  --port 9000 \
  --dtype bfloat16 \
  --max-model-len 1024 \
  --gpu-memory-utilization 0.9 \
  "$@"
