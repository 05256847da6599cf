"""Weights that ship with mdd (safetensors), each with its model card."""
