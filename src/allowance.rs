//! An allowance: how often something may be done, for what callers could otherwise have done as often as they like.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::{self, Instant};

/// So many at once, and so many more with each second that passes.
#[derive(Debug)]
pub(crate) struct Allowance {
    most: f64,
    per_second: f64,
    left: Mutex<Option<Left>>,
}

#[derive(Clone, Copy, Debug)]
struct Left {
    amount: f64,
    at: Instant,
}

impl Allowance {
    pub(crate) fn new(most: u32, per_second: u32) -> Self {
        Self {
            most: most.into(),
            per_second: per_second.into(),
            left: Mutex::default(),
        }
    }

    /// Takes one as soon as there is one. Those who wait take what comes in no particular order.
    pub(crate) async fn wait(&self) {
        while !self.take(Instant::now()) {
            time::sleep(Duration::from_secs_f64(1.0 / self.per_second)).await;
        }
    }

    /// Takes one, if there is one.
    pub(crate) fn take(&self, now: Instant) -> bool {
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        let amount = left.map_or(self.most, |left| {
            let passed = now.saturating_duration_since(left.at).as_secs_f64();
            self.most.min(left.amount + passed * self.per_second)
        });
        let enough = amount >= 1.0;
        *left = Some(Left {
            amount: if enough { amount - 1.0 } else { amount },
            at: now,
        });
        enough
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_comes_back_with_time() {
        let allowance = Allowance::new(3, 2);
        let begin = Instant::now();
        let taken = |millis, tries| {
            let now = begin + Duration::from_millis(millis);
            (0..tries).filter(|_| allowance.take(now)).count()
        };
        assert_eq!(taken(0, 5), 3);
        assert_eq!(taken(499, 1), 0);
        assert_eq!(taken(500, 5), 1);
        assert_eq!(taken(1_500, 5), 2);
        // Never more than the most.
        assert_eq!(taken(60_000, 5), 3);
    }
}
