"""Compute backends (torch, OpenVINO, CUDA graphs): measure them, choose one, cache the choice."""
