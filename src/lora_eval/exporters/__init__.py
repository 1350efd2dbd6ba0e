"""Make the model that ships from the one that was measured: `merge` and `gptq`, and what both need.

`weights` streams safetensors, `base_files` says what the base's tensors are, `lora` reads an adapter's
changes, `round_trip` makes the weights that training saw, `audit` says what a merge did, `carry` brings
tokenizer and settings along, `calibration` renders conversations, `steps` extends the lineage.
"""
