//! The one table: figure, what it is held against in the same run, target, whether it is met.

use std::fs;

/// Rows in the order they were measured.
#[derive(Debug, Default)]
pub(crate) struct Table {
    rows: Vec<[String; 5]>,
}

/// The middle of some figures.
pub(crate) fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or(f64::NAN)
}

/// The order of a round: every other one goes backwards, so that nobody always comes after the same neighbor.
pub(crate) fn in_turn(round: usize, count: usize) -> Vec<usize> {
    let forwards = 0..count;
    if round.is_multiple_of(2) {
        forwards.collect()
    } else {
        forwards.rev().collect()
    }
}

impl Table {
    /// A figure that is to be at most `most` times another of the same run; `others` are shown only.
    pub(crate) fn ratio(
        &mut self,
        what: &str,
        ours: f64,
        against: (&str, f64),
        most: f64,
        others: &[(&str, f64)],
    ) {
        let (name, theirs) = against;
        let ratio = ours / theirs;
        let mut beside = format!("{name} {}", figure(theirs));
        for (name, figure_of) in others {
            beside.push_str(&format!(", {name} {}", figure(*figure_of)));
        }
        self.rows.push([
            what.to_owned(),
            figure(ours),
            beside,
            format!("≤ {most:.2}x of {name}"),
            verdict(ratio <= most, &format!("{ratio:.2}x")),
        ]);
    }

    /// A figure that is to be at most `most` of its own unit.
    pub(crate) fn limit(&mut self, what: &str, unit: &str, ours: f64, most: f64, beside: &str) {
        self.rows.push([
            format!("{what}, {unit}"),
            figure(ours),
            beside.to_owned(),
            format!("≤ {}", figure(most)),
            verdict(ours <= most, ""),
        ]);
    }

    /// Prints Markdown, so that it can be put where people read.
    pub(crate) fn print(&self) {
        println!("{}\n", machine());
        println!("| Figure | Gantry | in the same run | target | met |");
        println!("|---|---|---|---|---|");
        for row in &self.rows {
            println!("| {} |", row.join(" | "));
        }
    }
}

fn verdict(met: bool, figure: &str) -> String {
    let word = if met { "yes" } else { "**no**" };
    format!("{word} {figure}").trim_end().to_owned()
}

/// Three digits that count.
fn figure(value: f64) -> String {
    match value.abs() {
        huge if huge >= 100.0 => format!("{value:.0}"),
        large if large >= 10.0 => format!("{value:.1}"),
        middle if middle >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

fn machine() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| {
        let line = text.lines().find(|line| line.starts_with(name))?;
        line.split_once(": ").map(|(_name, value)| value.to_owned())
    };
    let model = field("model name").unwrap_or_else(|| "an unknown processor".to_owned());
    let family = field("model\t").unwrap_or_default();
    let cores = text
        .lines()
        .filter(|line| line.starts_with("processor"))
        .count();
    let sha = field("flags").is_some_and(|flags| flags.contains("sha_ni"));
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split(' ').next().unwrap_or_default().to_owned();
    format!(
        "{model} (model {family}), {cores} cores, SHA extensions: {sha}, loopback; load average at the end {load}"
    )
}
