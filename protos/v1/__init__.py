"""Moorage wire contract, version 1. Regenerate with `./dev protos`."""
