//! Whether the time that a comparison takes tells where two values differ, in the manner of dudect ("Dude, is my code
//! constant time?", Reparaz, Balasch and Verbauwhede, 2017): classes of inputs are measured in random order, and Welch's
//! t says how sure it is that their times have different means. |t| below 4.5 is no evidence of a leak; one above 10 is
//! very likely one, and grows with the number of samples if it is.
//!
//! Reading the digits of a signature takes its own time, a few nanoseconds, which depends on these digits: their sender knows
//! them. So each pair of classes is measured a second time, as a control, against a secret that none of them is near to. What
//! differs there as much comes from the digits; a leak would show in the first figure alone.
//!
//! `make timing` takes enough samples for the figures to mean something, and reports them; a machine that does other work
//! makes them noisy, so nothing is asserted about verdict. What `make test` asserts is that the method works: that it
//! sees a comparison which ends at the first difference.

use std::{env, fmt, hint::black_box, time::Instant};

use verdict::{
    provider::{
        PROVIDERS, RawWebhook,
        signature::{Secret, VerifyError},
    },
    source::Source,
};

use crate::{
    refused::forger::Forger,
    support::{now, plain_source, secrets},
};

/// Enough to see whether it works at all.
const SAMPLES: usize = 500;

/// Enough to see the planted leak.
const PLANTED_SAMPLES: usize = 20_000;

/// How many different inputs of a class take turns, so that no single one is measured.
const INPUTS: usize = 64;

/// Inputs that a caller must not be able to tell from those of another class by the clock.
pub(crate) struct Class<I> {
    pub(crate) name: &'static str,
    pub(crate) inputs: Vec<I>,
}

/// The times that two classes took.
pub(crate) struct Comparison {
    names: [&'static str; 2],
    nanos: [Vec<f64>; 2],
}

/// Measures each pair of classes, so many samples of each class.
pub(crate) fn compare<I: Clone, O>(
    classes: &[Class<I>],
    samples: usize,
    run: impl Fn(I) -> O,
) -> Vec<Comparison> {
    let mut comparisons = Vec::new();
    for (index, second) in classes.iter().enumerate() {
        for first in &classes[..index] {
            comparisons.push(Comparison {
                names: [first.name, second.name],
                nanos: measure([&first.inputs, &second.inputs], samples, &run),
            });
        }
    }
    comparisons
}

fn measure<I: Clone, O>(
    inputs: [&Vec<I>; 2],
    samples: usize,
    run: impl Fn(I) -> O,
) -> [Vec<f64>; 2] {
    let mut nanos = [Vec::with_capacity(samples), Vec::with_capacity(samples)];
    while nanos.iter().any(|nanos| nanos.len() < samples) {
        let class = usize::from(fastrand::bool());
        // What is not measured is the same for both classes, too: the input is chosen and copied before.
        let input = inputs[class][fastrand::usize(..inputs[class].len())].clone();
        let begin = Instant::now();
        let output = black_box(run(black_box(input)));
        let elapsed = begin.elapsed();
        drop(output);
        if nanos[class].len() < samples {
            nanos[class].push(elapsed.as_nanos() as f64);
        }
    }
    nanos
}

impl Comparison {
    /// Welch's t, the greatest of all croppings: what the machine does besides makes some samples long, which hides
    /// what is to be seen in the short ones.
    pub(crate) fn t(&self) -> f64 {
        let mut all: Vec<f64> = self.nanos.iter().flatten().copied().collect();
        all.sort_by(f64::total_cmp);
        let croppings = [0.2, 0.4, 0.6, 0.8, 0.9, 0.95, 0.99, 1.0];
        let percentile = |share: f64| all[((all.len() - 1) as f64 * share) as usize];
        let greater = |one: f64, other: f64| if other.abs() > one.abs() { other } else { one };
        croppings
            .into_iter()
            .map(|share| welch(&self.nanos, percentile(share)))
            .fold(0.0, greater)
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let median = |nanos: &Vec<f64>| {
            let mut nanos = nanos.clone();
            nanos.sort_by(f64::total_cmp);
            nanos[nanos.len() / 2]
        };
        let [first, second] = self.names;
        write!(
            f,
            "{first} against {second}: t = {:.2}, medians {} and {} ns, {} samples each",
            self.t(),
            median(&self.nanos[0]),
            median(&self.nanos[1]),
            self.nanos[0].len()
        )
    }
}

/// Welch's t of the times that are not above a limit.
fn welch(nanos: &[Vec<f64>; 2], limit: f64) -> f64 {
    let moments = |nanos: &Vec<f64>| {
        let kept: Vec<f64> = nanos.iter().copied().filter(|n| *n <= limit).collect();
        let count = kept.len() as f64;
        let mean = kept.iter().sum::<f64>() / count;
        let squares: f64 = kept.iter().map(|n| (n - mean).powi(2)).sum();
        (mean, squares / (count - 1.0) / count)
    };
    let ((mean, variance), (other_mean, other_variance)) = (moments(&nanos[0]), moments(&nanos[1]));
    let t = (mean - other_mean) / (variance + other_variance).sqrt();
    // Too few samples, or all alike.
    if t.is_finite() { t } else { 0.0 }
}

/// How many samples to take; `make timing` takes more.
pub(crate) fn samples() -> usize {
    match env::var("VERDICT_TIMING_SAMPLES") {
        Ok(text) => text.parse().expect("VERDICT_TIMING_SAMPLES is a number"),
        Err(_) => SAMPLES,
    }
}

/// MACs that differ from the right one in one byte: the first, the last, or any. Otherwise they are alike, because reading
/// hex takes a time that depends on the digits: against MACs of random digits t is about 10, and tells nobody anything but
/// what they sent.
pub(crate) fn wrong_macs(right: &[u8]) -> [Class<Vec<u8>>; 3] {
    let changed_at = |index: usize| {
        let mut mac = right.to_vec();
        mac[index] ^= fastrand::u8(1..);
        mac
    };
    let class = |name, wrong: &dyn Fn() -> Vec<u8>| Class {
        name,
        inputs: (0..INPUTS).map(|_| wrong()).collect(),
    };
    [
        class("first byte", &|| changed_at(0)),
        class("last byte", &|| changed_at(right.len() - 1)),
        class("any byte", &|| changed_at(fastrand::usize(..right.len()))),
    ]
}

#[test]
#[expect(clippy::print_stdout, reason = "a report")]
fn wrong_signatures_take_their_time_wherever_they_differ() {
    for provider in PROVIDERS {
        for scheme in provider.schemes() {
            let source = plain_source(*provider, scheme.name);
            let forger = Forger::new(*provider, scheme, now());
            let right = base16ct::mixed::decode_vec(forger.mac(&forger.good)).expect("hex");
            let classes = wrong_macs(&right).map(|class| Class {
                name: class.name,
                inputs: class
                    .inputs
                    .iter()
                    .map(|mac| forger.with_mac(&base16ct::lower::encode_string(mac)))
                    .collect(),
            });
            let verify = |webhook: RawWebhook| source.verify(webhook, now()).map(|_| ());
            for webhook in classes.iter().flat_map(|class| &class.inputs) {
                assert_eq!(verify(webhook.clone()), Err(VerifyError::Mismatch));
            }
            let name = format!("{}/{}", provider.name(), scheme.name);
            for comparison in compare(&classes, samples(), verify) {
                println!("{name}: {comparison}");
            }
            // The same inputs, where the right signature is another one and none of them comes near it. What differs here
            // too comes from the digits of the inputs, which their sender knows anyway, and tells nothing of a secret.
            let stranger = Source {
                keyring: secrets(vec![
                    Secret::new("a".to_owned(), b"a secret that nobody has".to_vec()),
                    Secret::new("b".to_owned(), b"one more of this kind....".to_vec()),
                ]),
                ..source
            };
            let control = |webhook: RawWebhook| stranger.verify(webhook, now()).map(|_| ());
            for comparison in compare(&classes, samples(), control) {
                println!("{name}, control: {comparison}");
            }
        }
    }
}

#[test]
#[expect(clippy::print_stdout, reason = "a report")]
fn a_comparison_that_ends_at_the_first_difference_is_seen() {
    let right: Vec<u8> = (0..32).collect();
    let ends_early = |mac: Vec<u8>| {
        let mut pairs = mac.iter().zip(&right);
        pairs.all(|(one, other)| black_box(one) == black_box(other))
    };
    let planted = compare(&wrong_macs(&right), PLANTED_SAMPLES, ends_early);
    for comparison in &planted {
        println!("planted: {comparison}");
    }
    let [first_and_last, first_and_any, last_and_any] = &planted[..] else {
        panic!("three classes have three pairs");
    };
    assert!(first_and_last.t() < -10.0, "{first_and_last}");
    assert!(first_and_any.t() < -10.0, "{first_and_any}");
    assert!(last_and_any.t() > 10.0, "{last_and_any}");
}
