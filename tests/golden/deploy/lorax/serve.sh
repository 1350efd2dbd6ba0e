#!/bin/sh
# LoRAX, written by lora-eval VERSION. Reachable from this machine only.
set -eu
cd "$(dirname "$0")"
exec docker run --rm --gpus all --shm-size 8g --env-file server.env \
  --publish 127.0.0.1:8080:80 \
  --volume /models/llama:/model:ro --volume "$PWD:/deploy:ro" \
  ghcr.io/predibase/lorax:latest \
  --model-id /model \
  --hostname 0.0.0.0 \
  --port 80 \
  --dtype bfloat16 \
  --max-total-tokens 1024 \
  --max-input-length 1023 \
  --tokenizer-config-path /deploy/tokenizer_config.json \
  "$@"
