"""Records and topics, the join, session features, the learning loop, the Faust app, embedded broker and Redis."""
