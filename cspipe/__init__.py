"""Adapt a vision foundation model to many images with few labels, in three stages: extract, head, finetune."""

__version__ = "0.1.0"
