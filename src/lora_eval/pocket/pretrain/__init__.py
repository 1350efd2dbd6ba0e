"""Pretraining of the pocket model from scratch: ``python -m lora_eval.pocket.pretrain --out DIR``.

The only part of ``lora_eval.pocket`` that imports torch at the top; nothing outside it imports this package.
"""
