//! The table.

use std::{fs, path::Path, time::Duration};

use hdrhistogram::Histogram;

/// Names the machine, and the disk that is written to.
pub(crate) fn machine() {
    let cpus = fs::read_to_string("/proc/cpuinfo").expect("Linux");
    let model = cpus
        .lines()
        .find_map(|line| line.strip_prefix("model name"));
    let model = model.map_or("unknown", |rest| rest.trim_start_matches([' ', '\t', ':']));
    let cores = cpus
        .lines()
        .filter(|line| line.starts_with("processor"))
        .count();
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").expect("Linux");
    println!("- machine: {cores} × {model}, Linux {}", kernel.trim());
    println!(
        "- log: embedded, {}, fdatasync before each answer",
        filesystem()
    );
    println!(
        "- client and server share the machine; {} connections\n",
        crate::client::CONNECTIONS
    );
}

/// The file system of the log.
fn filesystem() -> String {
    let log = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let log = log.canonicalize().expect("a directory");
    let mounts = fs::read_to_string("/proc/self/mounts").expect("Linux");
    let of = |line: &str| {
        let mut fields = line.split(' ').skip(1);
        let (point, kind) = (fields.next()?.to_owned(), fields.next()?.to_owned());
        log.starts_with(&point).then_some((point.len(), kind))
    };
    let mount = mounts.lines().filter_map(of).max();
    mount.map_or("unknown".to_owned(), |(_, kind)| kind)
}

/// The middle one.
pub(crate) fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

pub(crate) fn percentiles(latency: &Histogram<u64>) -> String {
    let at = |quantile| latency.value_at_quantile(quantile) as f64 / 1000.0;
    format!("{:.2} / {:.2} / {:.2} ms", at(0.5), at(0.99), at(0.999))
}

pub(crate) fn micros(time: Duration, count: u64) -> f64 {
    time.as_secs_f64() * 1e6 / count as f64
}
