"""What `facegallery serve` needs to listen, looked at before anything is loaded: its address and its TLS files."""

import socket
import ssl
from pathlib import Path

from app.access.errors import AddressUnusable, TlsUnusable


def check_address(host: str, port: int) -> None:
    """Make sure that a service can listen there now, by taking the address for a moment.

    Raises:
        AddressUnusable: it is none of this machine's, is taken, or not for this user.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise AddressUnusable(f"FACEGALLERY_HOST: {host} is no address of this machine ({_reason(error)})") from error
    for family, kind, protocol, _, address in found:
        try:
            probe = socket.socket(family, kind, protocol)
        except OSError:  # a family that the machine does not have, which the server passes over as well
            continue
        with probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            try:
                probe.bind(address)
            except OSError as error:
                raise AddressUnusable(
                    f"port {port} of {host} cannot be listened on: {_reason(error)}; choose another with "
                    "FACEGALLERY_PORT and FACEGALLERY_HOST"
                ) from error


def check_tls(certificate: Path | None, key: Path | None) -> None:
    """Make sure that the two files are a certificate and its key.

    Raises:
        TlsUnusable: one of them is not there, or not what it should be.
    """
    if certificate is None or key is None:
        return
    for name, file, form in (("CERTIFICATE", certificate, "certificate"), ("KEY", key, "private key")):
        try:
            text = file.read_bytes()
        except OSError as error:
            raise TlsUnusable(f"FACEGALLERY_TLS_{name}: {file}: {_reason(error)}") from error
        if form.upper().encode() + b"-----" not in text:
            raise TlsUnusable(f"FACEGALLERY_TLS_{name}: {file} holds no {form} in PEM")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key)
    except (OSError, ValueError) as error:
        raise TlsUnusable(
            f"FACEGALLERY_TLS_CERTIFICATE: {certificate} and FACEGALLERY_TLS_KEY: {key} are no certificate and its key "
            f"({_reason(error)})"
        ) from error


def _reason(error: Exception) -> str:
    return error.strerror if isinstance(error, OSError) and error.strerror else str(error)
