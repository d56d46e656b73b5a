"""Heads and pooling layers that tasks add to pretrained models."""
