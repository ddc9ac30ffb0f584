"""A certificate for localhost that signs itself, and its key, in the folder that is named; kept if they are
there.

For the demo of compose.yaml only. A client that shall trust it needs the certificate as its CA.
"""

import datetime
import sys
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

DAYS = 365


def make(folder: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "mcp-proxy compose demo")])
    names = [x509.DNSName("localhost"), x509.IPAddress(ip_address("127.0.0.1"))]
    begin = datetime.datetime.now(datetime.UTC) - datetime.timedelta(hours=1)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(begin + datetime.timedelta(days=DAYS))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(key, hashes.SHA256())
    )
    encoding, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    # nginx is not root in its container, and the volume is nobody else's.
    write(folder / "tls.key", key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, plain))
    write(folder / "tls.crt", certificate.public_bytes(encoding))


def write(file: Path, content: bytes) -> None:
    """Whole or not at all."""
    new = file.with_suffix(".new")
    new.write_bytes(content)
    new.chmod(0o644)
    new.rename(file)


if __name__ == "__main__":
    target = Path(sys.argv[1])
    if not (target / "tls.crt").exists():
        make(target)
