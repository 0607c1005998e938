//! What the system knows of this process, under the names that all programs use.

use std::fmt;

use procfs::{
    ProcResult,
    process::{LimitValue, Process, Stat},
};
use prometheus_client::{collector::Collector, encoding::DescriptorEncoder, registry::Unit};

use super::figures::{Figures, figure};

/// The metrics of this process. What the system does not tell is left out.
#[derive(Debug)]
pub struct ProcessMetrics;

/// What is told of a process.
struct Told {
    stat: Stat,
    boot_seconds: u64,
    open_files: usize,
    max_open_files: u64,
}

impl Told {
    fn now() -> ProcResult<Self> {
        let process = Process::myself()?;
        Ok(Self {
            stat: process.stat()?,
            boot_seconds: procfs::boot_time_secs()?,
            open_files: process.fd_count()?,
            max_open_files: match process.limits()?.max_open_files.soft_limit {
                LimitValue::Value(limit) => limit,
                LimitValue::Unlimited => u64::MAX,
            },
        })
    }
}

impl Collector for ProcessMetrics {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Ok(told) = Told::now() else {
            return Ok(());
        };
        let Stat {
            utime,
            stime,
            starttime,
            vsize,
            rss,
            num_threads,
            ..
        } = told.stat;
        let seconds = |ticks: u64| ticks as f64 / procfs::ticks_per_second() as f64;
        let mut figures = Figures::new(encoder);
        figures.counter(
            &figure("process_cpu", "CPU time spent, of user and system.").in_unit(Unit::Seconds),
            seconds(utime + stime),
        )?;
        figures.gauge(
            &figure(
                "process_start_time",
                "When the process started, as Unix time.",
            )
            .in_unit(Unit::Seconds),
            told.boot_seconds as f64 + seconds(starttime),
        )?;
        figures.gauge(
            &figure("process_resident_memory", "Memory that is resident.").in_unit(Unit::Bytes),
            rss.saturating_mul(procfs::page_size()),
        )?;
        figures.gauge(
            &figure("process_virtual_memory", "Memory that is mapped.").in_unit(Unit::Bytes),
            vsize,
        )?;
        figures.gauge(
            &figure("process_open_fds", "File descriptors that are open."),
            told.open_files,
        )?;
        figures.gauge(
            &figure("process_max_fds", "File descriptors that may be open."),
            told.max_open_files,
        )?;
        figures.gauge(&figure("process_threads", "Threads."), num_threads)
    }
}
