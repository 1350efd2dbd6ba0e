#!/bin/sh
# TGI 3.3.7, written by lora-eval VERSION. Reachable from this machine only.
set -eu
cd "$(dirname "$0")"
exec docker run --rm --gpus all --shm-size 8g --env-file server.env \
  --publish 127.0.0.1:8080:80 \
  --volume /models/llama:/model:ro --volume "$PWD:/deploy:ro" \
  ghcr.io/huggingface/text-generation-inference:3.3.7 \
  --model-id /model \
  --hostname 0.0.0.0 \
  --port 80 \
  --dtype bfloat16 \
  --max-total-tokens 1024 \
  --max-input-tokens 1023 \
  --tokenizer-config-path /deploy/tokenizer_config.json \
  --lora-adapters support=/deploy/adapters/support-DIGEST,legal=/deploy/adapters/legal-DIGEST \
  "$@"
