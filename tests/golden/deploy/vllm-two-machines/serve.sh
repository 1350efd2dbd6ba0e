#!/bin/sh
# vLLM 0.32.0, written by lora-eval VERSION. Reachable from this machine only.
set -eu
cd "$(dirname "$0")"
set -a
. ./server.env
set +a
ray start --head --port 6379
exec python3 -m vllm.entrypoints.openai.api_server \
  --model /models/llama \
  --served-model-name llama \
  --host 127.0.0.1 \
  --port 8000 \
  --dtype bfloat16 \
  --max-model-len 1024 \
  --gpu-memory-utilization 0.9 \
  --tensor-parallel-size 2 \
  --pipeline-parallel-size 2 \
  --distributed-executor-backend ray \
  --enable-lora \
  --max-loras 1 \
  --max-cpu-loras 1 \
  --max-lora-rank 8 \
  --lora-target-modules k_proj q_proj v_proj \
  --lora-modules '{"name":"support","path":"./adapters/support-DIGEST","base_model_name":"llama"}' \
  "$@"
