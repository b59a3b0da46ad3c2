//! `make bench`: Gantry, nginx and Debian's docker-registry side by side in one run, and what each figure was to be.
//!
//! Map: `peers` starts the servers, `usage` reads what a process took from the kernel, `load` pulls and pushes; `transfers`,
//! `manifests`, `decisions`, `proxy`, `footprint` and `zipf` measure one family of figures each; `soak` is an hour of its own; `table` prints. Rounds are interleaved, so
//! that a machine that slows down slows down everybody. CPU is the server's own, all its processes, from the kernel's accounts.
#![expect(
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr,
    clippy::print_stdout,
    reason = "a program that measures other processes, prints, and fails aloud"
)]

mod decisions;
mod footprint;
mod load;
mod manifests;
mod peers;
mod proxy;
mod soak;
mod table;
mod transfers;
mod usage;
mod zipf;

use table::Table;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A family of figures, and what measures it.
type Part = (&'static str, fn(&mut Table));

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, floor, port, folder] = arguments.as_slice()
        && floor == "floor"
    {
        return peers::serve_floor(port.parse().expect("a port"), folder.as_ref());
    }
    let only: Vec<&String> = arguments
        .iter()
        .skip(1)
        .filter(|word| !word.starts_with("--"))
        .collect();
    let wanted = |name: &str| only.is_empty() || only.iter().any(|word| *word == name);
    let mut table = Table::default();
    let parts: [Part; 6] = [
        ("transfers", transfers::measure),
        ("manifests", manifests::measure),
        ("decisions", decisions::measure),
        ("proxy", proxy::measure),
        ("footprint", footprint::measure),
        ("zipf", zipf::measure),
    ];
    if only.iter().any(|word| *word == "soak") {
        soak::measure(&mut table);
        return table.print();
    }
    for (name, measure) in parts {
        if wanted(name) {
            eprintln!("measuring {name}");
            measure(&mut table);
        }
    }
    table.print();
}
