"""aiokafka's log without what its clients say to prove who they are: at level DEBUG it holds the password itself."""

from __future__ import annotations

import logging

_LOGGER = "aiokafka.conn"


def keep_proofs_out_of_logs() -> None:
    """Drop the log lines that quote an exchange of credentials; once is enough."""
    logging.getLogger(_LOGGER).addFilter(_holds_no_proof)


def _holds_no_proof(line: logging.LogRecord) -> bool:
    arguments = line.args if isinstance(line.args, tuple) else ()
    return not any(type(one).__name__.startswith("SaslAuthenticate") for one in arguments)
