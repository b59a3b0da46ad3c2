//! The program: arguments, configuration, serve, drain.

fn main() {}
