//! The mirror against a scripted upstream.
