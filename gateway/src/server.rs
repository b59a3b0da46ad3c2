//! Accept, TLS, connection tasks, limits, graceful drain.
