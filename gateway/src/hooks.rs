//! Adapters: the registry's admission port and the plugin host's ports, joined. The one place where the two meet.
