//! End to end: the real program, real clients, real bytes. One binary; each module is one promise.
