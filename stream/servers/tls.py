"""TLS for clients, from PEM files: a fault is named by the variable that gave the file, and no secret is shown."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import NamedTuple

from pydantic import SecretStr


class TlsFiles(NamedTuple):
    """The files of one server's clients; ``variable`` is what their variables begin with."""

    variable: str  # KAFKA_SSL
    cafile: Path | None  # None: the system's certificate authorities
    certfile: Path | None  # the client's certificate with its chain; None: it shows none
    keyfile: Path | None  # None: it lies in the certificate's file
    password: SecretStr | None = None  # of the key

    @property
    def given(self) -> bool:
        """Whether there is any."""
        return any((self.cafile, self.certfile, self.keyfile))


def client_context(files: TlsFiles) -> ssl.SSLContext:
    """Return a context that verifies the server and its name, and shows the client's certificate if there is one.

    Raises
    ------
    ValueError
        A file is missing or is not what its variable says.
    """
    name = files.variable
    if files.keyfile and not files.certfile:
        raise ValueError(
            f"{name}_KEYFILE={files.keyfile} belongs to no certificate: the server would see an unknown client. Set "
            f"{name}_CERTFILE, too."
        )
    for part, path in (("CAFILE", files.cafile), ("CERTFILE", files.certfile), ("KEYFILE", files.keyfile)):
        _check_readable(f"{name}_{part}", path)
    try:
        context = ssl.create_default_context(cafile=files.cafile)
    except ssl.SSLError as error:
        raise ValueError(
            f"{name}_CAFILE={files.cafile} holds no certificates ({error}): the server's own could not be verified. "
            "Give the certificates of its authority as PEM."
        ) from error
    if files.certfile:
        _show(context, files, files.certfile)
    return context


def _check_readable(variable: str, path: Path | None) -> None:
    try:
        if path is not None:
            path.open("rb").close()
    except OSError as error:
        raise ValueError(
            f"{variable}={path} cannot be read ({error.strerror}): no connection could be made. Give a file that this "
            "user may read, or unset it."
        ) from error


def _show(context: ssl.SSLContext, files: TlsFiles, certfile: Path) -> None:
    name, password = files.variable, files.password

    def key_password() -> str:  # without it OpenSSL would ask on the terminal
        if password is None:
            raise ValueError(
                f"{name}_KEYFILE={files.keyfile or certfile} is encrypted: the key cannot be used. Set "
                f"{name}_KEYFILE_PASSWORD, or give a key that is not."
            )
        return password.get_secret_value()

    try:
        context.load_cert_chain(certfile, files.keyfile, key_password)
    except ssl.SSLError as error:
        raise ValueError(
            f"{name}_CERTFILE={certfile} and {name}_KEYFILE={files.keyfile or certfile} cannot be used together "
            f"({error}): the client could not identify itself. Both must be PEM, the key that of the first certificate"
            f"{'' if password is None else f', and {name}_KEYFILE_PASSWORD the password of the key'}."
        ) from error
