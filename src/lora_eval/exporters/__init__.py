"""Make the model that ships from the one that was measured: `merge`, `base`, `gptq`, `awq` and their parts.

Merging: `base_files` says what the base's tensors are, `lora` what an adapter holds, `plan` what becomes of
each tensor, `assemble` writes them with `changes` (the arithmetic), `round_trip` (the weights that training
saw) and `drift` (PiSSA, OLoRA); `pieces` spreads the work over threads, `weights` streams safetensors,
`file_work` is what is done with whole files meanwhile, `audit` says what a merge did, `combine` makes one
adapter of several. Quantizing: `quantize`, `calibration`, `rows`, `overlap`, `environment`, `workers`,
`worker_main`. For all: `carry` brings tokenizer and settings along, `steps`
extends the lineage.
"""
