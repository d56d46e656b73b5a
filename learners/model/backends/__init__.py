"""Compute backends (torch, OpenVINO, ONNX Runtime, CUDA graphs): measure them, choose one, cache the choice."""
