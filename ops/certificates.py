"""The certificates of one Ray session: mutual TLS, so that only the run's own processes can speak to Ray.

Ray checks its token inside a call. A stream that comes without a header kills the daemon before that
check, and any user of the machine can open one. With mutual TLS the handshake fails first. One authority
signs one certificate, which every process of the session shows, as server and as client; the authority's
key is never written. Nothing expires: a run may go on for months, and a clock may be wrong.
"""

import datetime
import ipaddress
import os
from pathlib import Path

CERTIFICATE, KEY, AUTHORITY = "tls.crt", "tls.key", "tls.authority"
FROM = datetime.datetime(2000, 1, 1, tzinfo=datetime.UTC)
UNTIL = datetime.datetime(2100, 1, 1, tzinfo=datetime.UTC)


def tls_environment(folder: Path) -> dict[str, str]:
    """Returns the variables with which Ray's processes find the certificates in `folder`."""
    return {
        "RAY_USE_TLS": "1",
        "RAY_TLS_SERVER_CERT": str(folder / CERTIFICATE),
        "RAY_TLS_SERVER_KEY": str(folder / KEY),
        "RAY_TLS_CA_CERT": str(folder / AUTHORITY),
    }


def write_certificates(folder: Path) -> None:
    """Writes the session's certificate, its key and its authority's certificate into `folder`."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    def named(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])

    def unsigned(subject: str, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(named(subject))
            .issuer_name(named("pippin session authority"))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(FROM)
            .not_valid_after(UNTIL)
            .add_extension(x509.BasicConstraints(subject != "localhost", None), critical=True)
        )

    ours, authority = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    names = [
        x509.DNSName("localhost"),
        x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
        x509.IPAddress(ipaddress.ip_address("::1")),
    ]
    root = unsigned("pippin session authority", authority).sign(authority, hashes.SHA256())
    leaf = (
        unsigned("localhost", ours)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(authority, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    for name, content in (
        (CERTIFICATE, leaf.public_bytes(pem)),
        (KEY, ours.private_bytes(pem, *plain)),
        (AUTHORITY, root.public_bytes(pem)),
    ):
        descriptor = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
