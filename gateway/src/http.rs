//! The life of a request. Start reading here.

pub mod error;
