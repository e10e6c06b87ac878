"""One authenticated connection, and what it rests on: configuration, identity, peers, the C engine."""
