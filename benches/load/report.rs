//! What is told: the machine, tables, and the goals.

use std::{fs, path::Path, time::Duration};

use hdrhistogram::Histogram;

use crate::{
    client::{self, Measured},
    process::Server,
};

/// Says how the tables are to be read, and names the machine and the disk that is written to.
pub(crate) fn machine() {
    println!(
        "# Benchmarks\n\n\
         Written by `make bench`. Absolute figures are those of one machine on one day; what counts are ratios in one run, in\n\
         which the two services take turns. The baseline does nothing: \"echo\" sends back the 900 bytes that it was sent, \"raw\n\
         stream\" sends 600 bytes again and again. verdict verifies, normalizes, recognizes duplicates, encrypts and syncs webhooks\n\
         of five providers, of about 900 bytes, made up after what the providers document; Kayle's are signed and not encrypted,\n\
         because opening those would measure RSA. Of a stream, every 64th message is timed: until as many answers have come. Whoever\n\
         catches up waits for no event in particular. What is resident is that after the last round. Where the time goes is told in\n\
         [ARCHITECTURE.md](../ARCHITECTURE.md#performance).\n"
    );
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
        "- log: embedded, encrypted, {}, fdatasync before each answer",
        filesystem()
    );
    println!(
        "- client and server share the machine; {} connections; the baseline has the same tonic, allocator and optimization\n",
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

/// The rounds of one service.
#[derive(Default)]
pub(crate) struct Row {
    per_second: Vec<f64>,
    cpu_micros: Vec<f64>,
    resident_bytes: u64,
    latency: Option<Histogram<u64>>,
}

impl Row {
    /// Measures what a server does, once more.
    pub(crate) async fn measure(&mut self, server: &Server, work: impl Future<Output = Measured>) {
        let before = server.processor_time();
        let measured = work.await;
        let cpu = server.processor_time() - before;
        self.per_second.push(measured.per_second());
        self.cpu_micros.push(micros(cpu, measured.count));
        self.resident_bytes = server.resident_bytes();
        let all = self.latency.get_or_insert_with(client::histogram);
        all.add(&measured.latency).expect("the same bounds");
    }

    pub(crate) fn print(&self, name: &str) {
        let latency = self.latency.as_ref().filter(|latency| !latency.is_empty());
        println!(
            "| {name} | {:.0} | {:.1} | {} | {} MiB |",
            self.per_second(),
            self.cpu_micros(),
            latency.map_or("–".to_owned(), percentiles),
            self.resident_bytes >> 20,
        );
    }

    /// How many in a second.
    pub(crate) fn per_second(&self) -> f64 {
        median(self.per_second.iter().copied())
    }

    /// The server's time for each, in microseconds.
    pub(crate) fn cpu_micros(&self) -> f64 {
        median(self.cpu_micros.iter().copied())
    }

    /// How much faster it is than another, round by round.
    pub(crate) fn ratio_to(&self, other: &Self) -> f64 {
        let both = self.per_second.iter().zip(&other.per_second);
        median(both.map(|(of, to)| of / to))
    }

    /// The latency that only one in a hundred exceeds, in microseconds.
    pub(crate) fn p99(&self) -> u64 {
        let latency = self.latency.as_ref();
        latency.map_or(0, |latency| latency.value_at_quantile(0.99))
    }
}

pub(crate) fn head(title: &str) {
    println!("## {title}\n");
    println!(
        "| service | per second | server CPU, µs each | p50 / p99 / p99.9 | resident |\n|---|---|---|---|---|"
    );
}

/// What was to be reached, and what was.
#[derive(Default)]
pub(crate) struct Goals(Vec<String>);

impl Goals {
    /// A figure that is to be at least so much.
    pub(crate) fn at_least(&mut self, what: &str, goal: f64, measured: f64, unit: &str) {
        self.add(what, &format!("≥ {goal}"), measured >= goal, measured, unit);
    }

    /// A figure that is to be at most so much.
    pub(crate) fn at_most(&mut self, what: &str, goal: f64, measured: f64, unit: &str) {
        self.add(what, &format!("≤ {goal}"), measured <= goal, measured, unit);
    }

    fn add(&mut self, what: &str, goal: &str, reached: bool, measured: f64, unit: &str) {
        let reached = if reached { "yes" } else { "**no**" };
        let measured = match measured {
            large if large >= 100.0 => format!("{large:.0}"),
            small => format!("{small:.2}"),
        };
        let row = format!("| {what} | {goal}{unit} | {measured}{unit} | {reached} |");
        self.0.push(row);
    }

    pub(crate) fn print(&self) {
        println!("## Goals\n\n| what | goal | measured | reached |\n|---|---|---|---|");
        for row in &self.0 {
            println!("{row}");
        }
    }
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
