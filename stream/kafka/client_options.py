"""How a client of the broker says who it is; nothing of it may be logged."""

from __future__ import annotations

import logging
from typing import Any

from stream.kafka.aiokafka_internals import CONNECTION_LOG, holds_a_proof
from stream.servers.settings import StreamSettings
from stream.servers.tls import client_context


def kafka_client_options(settings: StreamSettings) -> dict[str, Any]:
    """Return the security arguments that any aiokafka client takes; nothing of it may be logged."""
    protocol = settings.kafka_security_protocol
    options: dict[str, Any] = {"security_protocol": protocol}
    if protocol.endswith("SSL"):
        options["ssl_context"] = client_context(settings.kafka_tls)
    if protocol.startswith("SASL") and settings.kafka_sasl_password is not None:
        keep_proofs_out_of_logs()
        options["sasl_mechanism"] = settings.kafka_sasl_mechanism
        options["sasl_plain_username"] = settings.kafka_sasl_username
        options["sasl_plain_password"] = settings.kafka_sasl_password.get_secret_value()
    return options


def keep_proofs_out_of_logs() -> None:
    """Drop the lines of aiokafka that quote an exchange of credentials; once is enough."""
    logging.getLogger(CONNECTION_LOG).addFilter(_holds_no_proof)


def _holds_no_proof(line: logging.LogRecord) -> bool:
    arguments = line.args if isinstance(line.args, tuple) else ()
    return not any(map(holds_a_proof, arguments))
