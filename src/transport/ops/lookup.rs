//! The metrics that are looked up when somebody asks: how things are now, and what is counted elsewhere.
//!
//! Labels come from the configuration and from lists of ours, but for the names of consumers: those are made by callers, and
//! the log keeps at most [`MAX_CONSUMERS`](crate::log::MAX_CONSUMERS) of them.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Weak},
};

use jiff::Timestamp;
use prometheus_client::{collector::Collector, encoding::DescriptorEncoder, registry::Unit};

use crate::{
    caller::{Callers, Refused},
    event::NORMALIZER_VERSION,
    log::{Consumer, DiskSpace, EncryptionStats, EventLog, Health, QuarantineStats, Stats},
    provider::usage::Usage,
    source::{Count, Counts, Source},
    telemetry::figures::{Figures, figure},
    transport::{
        Shared,
        admission::Rooms,
        health::Readiness,
        tls::{ServerTls, Tls},
    },
};

/// Where they are looked up.
pub(super) struct Lookup {
    sources: Vec<Arc<Source>>,
    callers: Arc<Callers>,
    rooms: Arc<Rooms>,
    log: Weak<dyn EventLog>,
    tls: Vec<(&'static str, Arc<Tls>)>,
    readiness: Readiness,
    started_at: Timestamp,
}

impl Lookup {
    pub(super) fn new(shared: &Shared, tls: &ServerTls, readiness: Readiness) -> Self {
        Self {
            sources: shared.ingestor.sources().to_vec(),
            callers: Arc::clone(&shared.callers),
            rooms: Arc::clone(&shared.rooms),
            log: Arc::downgrade(&shared.log),
            tls: tls.named(),
            readiness,
            started_at: shared.started_at,
        }
    }
}

impl fmt::Debug for Lookup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lookup").finish_non_exhaustive()
    }
}

impl Collector for Lookup {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut figures = Figures::new(encoder);
        figures.info(
            &figure("build", "The program that runs."),
            &[("version", NORMALIZER_VERSION)],
        )?;
        figures.gauge(
            &figure(
                "ready",
                "Whether the server is to be sent calls and webhooks: 1 or 0.",
            ),
            flag(self.readiness.borrow().is_ready()),
        )?;
        self.outcomes(&mut figures)?;
        self.secrets(&mut figures)?;
        self.callers(&mut figures)?;
        self.capacity(&mut figures)?;
        self.certificates(&mut figures)?;
        // It is gone when the server has ended.
        match self.log.upgrade() {
            Some(log) => log_figures(log.as_ref(), &mut figures),
            None => Ok(()),
        }
    }
}

impl Lookup {
    /// How deliveries have ended, by provider.
    fn outcomes(&self, figures: &mut Figures<'_>) -> fmt::Result {
        figures.counters(
            &figure("ingest", "Genuine webhooks, by what became of them."),
            self.sums(
                |Counts {
                     accepted,
                     duplicate,
                     quarantined,
                     ignored,
                     ..
                 }| {
                    [
                        (("status", "accepted"), accepted),
                        (("status", "duplicate"), duplicate),
                        (("status", "quarantined"), quarantined),
                        (("status", "ignored"), ignored),
                    ]
                },
            ),
        )?;
        figures.counters(
            &figure(
                "ingest_unverified",
                "Webhooks that were not proved genuine, of sources that keep them, by whether they were kept.",
            ),
            self.sums(|Counts { unverified_kept, unverified_dropped, .. }| {
                [
                    (("fate", "kept"), unverified_kept),
                    (("fate", "dropped"), unverified_dropped),
                ]
            }),
        )
    }

    /// Some counts of all accounts of a provider together, for each provider.
    fn sums<const N: usize>(
        &self,
        counts: impl Fn(&Counts) -> [(Label, &Count); N],
    ) -> BTreeMap<[Label; 2], u64> {
        let mut sums = BTreeMap::new();
        for source in &self.sources {
            let provider = ("provider", source.provider.name());
            for (label, count) in counts(&source.counts) {
                *sums.entry([provider, label]).or_default() += count.get();
            }
        }
        sums
    }

    /// Since when each secret and decryption key is known, and how it was used.
    fn secrets(&self, figures: &mut Figures<'_>) -> fmt::Result {
        let secrets: Vec<SecretFigures> = self
            .sources
            .iter()
            .flat_map(|source| self.secrets_of(source))
            .collect();
        figures.gauges(
            &figure(
                "secret_known_since_timestamp",
                "Since when a secret has its value, as far as this process knows: since its start, or since its file changed.",
            )
            .in_unit(Unit::Seconds),
            secrets.iter().map(|secret| (&secret.labels[..], secret.known_since)),
        )?;
        figures.gauges(
            &figure(
                "secret_last_used_timestamp",
                "When the newest webhook came that a secret was needed for. Absent before the first.",
            )
            .in_unit(Unit::Seconds),
            secrets.iter().filter_map(|secret| Some((&secret.labels[..], secret.last_used?))),
        )?;
        figures.counters(
            &figure("secret_uses", "Webhooks that a secret was needed for."),
            secrets
                .iter()
                .map(|secret| (&secret.labels[..], secret.uses)),
        )
    }

    fn secrets_of(&self, source: &Source) -> Vec<SecretFigures> {
        let figures =
            |kind: &str, id: &str, loaded_at: Option<Timestamp>, usage: &Usage| SecretFigures {
                labels: [
                    ("provider", source.provider.name().to_owned()),
                    ("account", source.account.clone()),
                    ("kind", kind.to_owned()),
                    ("secret_id", id.to_owned()),
                ],
                known_since: loaded_at.unwrap_or(self.started_at).as_second(),
                last_used: usage.last_used_at().map(Timestamp::as_second),
                uses: usage.uses(),
            };
        let keys = source.keys();
        let secrets = keys.secrets.iter();
        let secrets = secrets
            .map(|secret| figures("signature", secret.id(), secret.loaded_at(), secret.usage()));
        let decryption_keys = keys.decryption_keys.iter();
        let decryption_keys = decryption_keys
            .map(|key| figures("decryption", key.id(), key.loaded_at(), key.usage()));
        secrets.chain(decryption_keys).collect()
    }

    /// Whom nobody knew.
    fn callers(&self, figures: &mut Figures<'_>) -> fmt::Result {
        let refused = Refused::ALL.map(|why| ([("reason", why.name())], self.callers.refused(why)));
        figures.counters(
            &figure(
                "callers_refused",
                "Calls that were refused because nobody knew the caller, by why.",
            ),
            refused,
        )
    }

    /// When the certificates expire that the listeners show.
    fn certificates(&self, figures: &mut Figures<'_>) -> fmt::Result {
        let expiries = self.tls.iter();
        figures.gauges(
            &figure(
                "tls_certificate_expiry_timestamp",
                "When the certificate of a listener expires, or one of its issuers in the same file.",
            )
            .in_unit(Unit::Seconds),
            expiries.filter_map(|(name, tls)| Some(([("listener", *name)], tls.expires_at()?))),
        )
    }

    /// What the server does at once, and how much of that it may do.
    fn capacity(&self, figures: &mut Figures<'_>) -> fmt::Result {
        let rooms = self.rooms.all();
        figures.gauges(
            &figure("capacity_in_use", "What is open or being served now."),
            rooms.map(|(what, room)| ([("resource", what)], room.taken())),
        )?;
        figures.gauges(
            &figure(
                "capacity_limit",
                "How much may be open or being served at once.",
            ),
            rooms.map(|(what, room)| ([("resource", what)], room.most())),
        )?;
        let memory = &self.rooms.webhook_memory;
        figures.gauge(
            &figure(
                "webhook_memory",
                "What the webhooks take that are being received and taken at the edge.",
            )
            .in_unit(Unit::Bytes),
            memory.taken(),
        )?;
        figures.gauge(
            &figure("webhook_memory_limit", "How much of that there may be.").in_unit(Unit::Bytes),
            memory.most(),
        )
    }
}

type Label = (&'static str, &'static str);

/// What is shown of a secret or a decryption key.
struct SecretFigures {
    labels: [(&'static str, String); 4],
    known_since: i64,
    last_used: Option<i64>,
    uses: u64,
}

fn log_figures(log: &dyn EventLog, figures: &mut Figures<'_>) -> fmt::Result {
    let stats = log.stats();
    figures.gauge(
        &figure("log_writable", "Whether the log can write: 1 or 0."),
        flag(*log.health().borrow() == Health::Well),
    )?;
    figures.gauge(
        &figure(
            "log_first_position",
            "The place before the oldest event that is retained.",
        ),
        log.start().0,
    )?;
    figures.gauge(
        &figure("log_last_position", "The place of the newest event."),
        log.tail().end().0,
    )?;
    figures.gauge(
        &figure("log_size", "Events and raw deliveries.").in_unit(Unit::Bytes),
        stats.size_bytes,
    )?;
    figures.gauge(
        &figure(
            "log_format",
            "The version of the stored format; 0 in memory.",
        ),
        stats.format,
    )?;
    disk(log, figures)?;
    encryption(&stats, figures)?;
    quarantines(&stats, figures)?;
    consumers(log, figures)
}

fn disk(log: &dyn EventLog, figures: &mut Figures<'_>) -> fmt::Result {
    let space = log.disk_space();
    if space.is_empty() {
        return Ok(());
    }
    let series = |value: fn(&DiskSpace) -> u64| {
        let one = move |space: &DiskSpace| ([("directory", space.directory)], value(space));
        space.iter().map(one).collect::<Vec<_>>()
    };
    figures.gauges(
        &figure(
            "log_disk_free",
            "What is free on the disk of the log, and on that of its keys.",
        )
        .in_unit(Unit::Bytes),
        series(|space| space.free_bytes),
    )?;
    figures.gauges(
        &figure(
            "log_disk_min_free",
            "With less than this free, nothing is written.",
        )
        .in_unit(Unit::Bytes),
        series(|space| space.min_free_bytes),
    )
}

fn encryption(stats: &Stats, figures: &mut Figures<'_>) -> fmt::Result {
    let Some(EncryptionStats {
        enabled,
        master_key_id: _,
        key_files,
        to_rewrap,
        segments_without_keys,
    }) = stats.encryption
    else {
        return Ok(());
    };
    figures.gauge(
        &figure(
            "log_encrypting",
            "Whether what is written now is encrypted: 1 or 0.",
        ),
        flag(enabled),
    )?;
    figures.gauge(&figure("log_key_files", "Files of data keys."), key_files)?;
    figures.gauge(
        &figure(
            "log_key_files_to_rewrap",
            "Those that an older master key wraps still.",
        ),
        to_rewrap,
    )?;
    figures.gauge(
        &figure(
            "log_segments_without_keys",
            "Segments whose data keys are gone: what is encrypted there cannot be read.",
        ),
        segments_without_keys,
    )
}

fn quarantines(stats: &Stats, figures: &mut Figures<'_>) -> fmt::Result {
    let series = |value: fn(&QuarantineStats) -> u64| {
        [
            ("genuine", &stats.genuine),
            ("unverified", &stats.unverified),
        ]
        .map(|(kind, stats)| ([("kind", kind)], value(stats)))
    };
    figures.gauges(
        &figure("quarantine_deliveries", "Deliveries in quarantine."),
        series(|stats| stats.deliveries),
    )?;
    figures.gauges(
        &figure("quarantine_size", "Their size.").in_unit(Unit::Bytes),
        series(|stats| stats.size_bytes),
    )?;
    figures.counters(
        &figure(
            "quarantine_dropped",
            "Deliveries that have made room for others in quarantine, or grew too old.",
        ),
        series(|stats| stats.dropped),
    )
}

fn consumers(log: &dyn EventLog, figures: &mut Figures<'_>) -> fmt::Result {
    let consumers = log.consumers();
    let series = |consumer: &Consumer| [("consumer", consumer.name.clone())];
    figures.gauges(
        &figure(
            "consumer_lag",
            "Events that a consumer has not committed yet.",
        )
        .in_unit(Unit::Other("events".to_owned())),
        consumers
            .iter()
            .map(|one| (series(one), log.lag(&one.cursor))),
    )?;
    figures.gauges(
        &figure(
            "consumer_committed_timestamp",
            "When a consumer has committed last.",
        )
        .in_unit(Unit::Seconds),
        consumers
            .iter()
            .map(|one| (series(one), one.committed_at.seconds)),
    )
}

/// Yes or no, as Prometheus tells it.
fn flag(is_so: bool) -> u32 {
    u32::from(is_so)
}
