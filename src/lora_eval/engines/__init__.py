"""Engines: token ids in, log-likelihoods or text out."""
