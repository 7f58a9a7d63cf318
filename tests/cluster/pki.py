"""Keys and certificates of a cluster, made with openssl."""

from __future__ import annotations

import subprocess
from pathlib import Path


def _openssl(*arguments: str | Path) -> None:
    done = subprocess.run(["openssl", *map(str, arguments)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"openssl {arguments[0]}: {done.stderr}")


def make(folder: Path, names: list[str], addresses: list[str]) -> None:
    """Writes ca.crt, ca.key, server.crt, server.key (for these names and addresses) and the service accounts' sa.*."""
    folder.mkdir(parents=True, exist_ok=True)
    subject = ["-subj", "/CN=orion-test-ca"]
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "30"]
    _openssl("req", "-x509", *key, *subject, "-keyout", folder / "ca.key", "-out", folder / "ca.crt")
    _openssl(
        "req", *key[:-2], "-subj", "/CN=kube-apiserver", "-keyout", folder / "server.key", "-out", folder / "server.csr"
    )
    alternatives = ",".join([*(f"DNS:{name}" for name in names), *(f"IP:{address}" for address in addresses)])
    (folder / "server.ext").write_text(f"subjectAltName={alternatives}\nextendedKeyUsage=serverAuth\n")
    _openssl(
        *("x509", "-req", "-in", folder / "server.csr", "-CA", folder / "ca.crt", "-CAkey", folder / "ca.key"),
        *("-CAcreateserial", "-days", "30", "-extfile", folder / "server.ext", "-out", folder / "server.crt"),
    )
    _openssl("genrsa", "-out", folder / "sa.key", "2048")
    _openssl("rsa", "-in", folder / "sa.key", "-pubout", "-out", folder / "sa.pub")
