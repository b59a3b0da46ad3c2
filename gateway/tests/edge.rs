//! The edge on real sockets: what broken, slow, hostile and ordinary clients meet.

#[cfg(test)]
#[path = "edge/bodies.rs"]
mod bodies;
#[cfg(test)]
#[path = "edge/drain.rs"]
mod drain;
#[cfg(test)]
#[path = "edge/files.rs"]
mod files;
#[cfg(test)]
#[path = "edge/first_bytes.rs"]
mod first_bytes;
#[cfg(test)]
#[path = "edge/h2.rs"]
mod h2;
#[cfg(test)]
#[path = "edge/harness.rs"]
mod harness;
#[cfg(test)]
#[path = "edge/limits.rs"]
mod limits;
#[cfg(test)]
#[path = "edge/smuggling.rs"]
mod smuggling;
#[cfg(test)]
#[path = "edge/tls.rs"]
mod tls;
