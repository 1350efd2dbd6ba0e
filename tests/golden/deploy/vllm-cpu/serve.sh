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
  --port 8000 \
  --dtype bfloat16 \
  --max-model-len 512 \
  --enforce-eager \
  --enable-lora \
  --max-loras 3 \
  --max-cpu-loras 3 \
  --max-lora-rank 16 \
  --lora-target-modules k_proj q_proj v_proj \
  --lora-modules '{"name":"support","path":"./adapters/support-DIGEST","base_model_name":"llama"}' '{"name":"legal","path":"./adapters/legal-DIGEST","base_model_name":"llama"}' \
  "$@"
