"""Pretrained and weightless encoders: readings to tokens."""
