"""Servers: what each makes of a base and its adapters (lint), and how it is started (render).

Decided from config.json, adapter_config.json, the headers of safetensors files and lineage.json; no weights
are read and no torch is imported. `inputs` reads, `rules`, `base_rules` and `texts` judge, `sizes` computes,
`launch` renders; `vllm`, `sglang`, `tgi` and `lorax` say what is so with each server.
"""
