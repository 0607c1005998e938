//! The servers, each a process of its own, and what they take.

use std::{
    env, fs,
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use procfs::process::Process;
use serde_json::Value;
use tempfile::TempDir;

use crate::webhooks::{SECRET, SOURCES};

/// The name of its configuration.
const CONFIG: &str = "verdict.toml";

/// A server, killed when it is dropped.
pub(crate) struct Server {
    process: Child,
    pub(crate) url: String,
    /// Its log and its configuration, if it has any, which go with it.
    directory: Option<TempDir>,
}

impl Server {
    /// Starts the services that do nothing: this program once more.
    pub(crate) fn baseline() -> Self {
        let mut process = Command::new(env::current_exe().expect("a path"))
            .arg(crate::BASELINE)
            .stdout(Stdio::piped())
            .spawn()
            .expect("it runs");
        let mut lines = BufReader::new(process.stdout.take().expect("piped")).lines();
        let address = lines.next().expect("a line").expect("UTF-8");
        Self {
            process,
            url: format!("http://{address}"),
            directory: None,
        }
    }

    /// Starts verdict with an empty log.
    pub(crate) fn verdict() -> Self {
        // Beside the program, on a disk: the directory for temporary files may be in memory.
        let beside = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let directory = TempDir::new_in(beside).expect("a directory");
        let config = directory.path().join(CONFIG);
        let text = format!(
            "[server]\ngrpc_listen = \"127.0.0.1:0\"\nwebhook_listen = \"\"\nops_listen = \"\"\n\
             max_concurrent_calls = 4096\nmax_subscriptions = 16384\n\
             [log]\npath = \"{}\"\n{SOURCES}",
            directory.path().join("log").display()
        );
        fs::write(&config, text).expect("a file");
        let (process, url) = start(&config);
        Self {
            process,
            url,
            directory: Some(directory),
        }
    }

    /// Kills verdict and starts it again on the same log; says how long it takes until it serves.
    pub(crate) fn start_again(&mut self) -> Duration {
        let config = self.directory.as_ref().expect("it has a log").path();
        let config = config.join(CONFIG);
        self.process.kill().expect("it runs");
        self.process.wait().expect("it ends");
        let begun = Instant::now();
        (self.process, self.url) = start(&config);
        begun.elapsed()
    }

    /// The time that it has spent on a processor.
    pub(crate) fn processor_time(&self) -> Duration {
        let stat = self.process().stat().expect("Linux");
        let ticks = stat.utime + stat.stime;
        Duration::from_secs_f64(ticks as f64 / procfs::ticks_per_second() as f64)
    }

    /// The memory that it has.
    pub(crate) fn resident_bytes(&self) -> u64 {
        let status = self.process().status().expect("Linux");
        status.vmrss.expect("a figure") << 10
    }

    fn process(&self) -> Process {
        Process::new(self.process.id().cast_signed()).expect("it runs")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Waits until the disk has nothing to do any more: the logs of earlier measurements are being deleted.
pub(crate) async fn settle() {
    rustix::fs::sync();
    tokio::time::sleep(Duration::from_secs(5)).await;
    rustix::fs::sync();
}

/// Starts verdict, and says where it serves.
fn start(config: &Path) -> (Child, String) {
    let (name, secret) = SECRET;
    let mut process = Command::new(env!("CARGO_BIN_EXE_verdict"))
        .args(["serve", "--config"])
        .arg(config)
        .env(name, secret)
        .stderr(Stdio::piped())
        .spawn()
        .expect("it runs");
    let mut lines = BufReader::new(process.stderr.take().expect("piped")).lines();
    let address = lines.by_ref().find_map(|line| {
        let line: Value = serde_json::from_str(&line.expect("UTF-8")).expect("JSON");
        Some(line["server.address"].as_str()?.to_owned())
    });
    // Whoever writes to a pipe that nobody reads has to wait.
    thread::spawn(move || lines.for_each(drop));
    (process, format!("http://{}", address.expect("it serves")))
}
