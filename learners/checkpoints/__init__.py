"""Signed policy versions on disk: `signing.py` holds keys and signatures, `manifest.py` verifies one version, `store.py` keeps all."""
