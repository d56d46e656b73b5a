"""Experience as a LeRobotDataset and the policy as ONNX."""
