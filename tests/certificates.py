"""Self-signed certificates for brokers that tests start."""

from __future__ import annotations

import subprocess
from pathlib import Path


def certificate(folder: Path, address: str = "127.0.0.1") -> tuple[Path, Path]:
    """Make a key and a certificate of an address, valid for a day."""
    key, cert = folder / "key.pem", folder / "cert.pem"
    subject = ["-subj", f"/CN={address}", "-addext", f"subjectAltName=IP:{address}", "-days", "1", "-nodes"]
    make = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    subprocess.run([*make, "-keyout", str(key), "-out", str(cert), *subject], check=True, capture_output=True)
    key.chmod(0o644)  # a broker that runs as another user reads it
    return key, cert
