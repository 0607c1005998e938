//! Which events a subscriber wants.

use std::{borrow::Borrow, collections::HashSet, hash::Hash, sync::Arc};

use crate::{
    caller::Reach,
    log::Wanted,
    marks::{self, Field, FilteredEvent},
    proto::{Environment, EventFilter, EventKind, Finality, Outcome},
};

/// Which events to send. An empty set means all.
#[derive(Clone, Debug)]
pub struct Filter {
    providers: HashSet<String>,
    accounts: HashSet<String>,
    environments: HashSet<i32>,
    kinds: HashSet<i32>,
    outcomes: HashSet<i32>,
    subject_ids: HashSet<String>,
    external_ids: HashSet<String>,
    verification_ids: HashSet<String>,
    final_only: bool,
    /// For each field that is asked for, the marks of the values that it may have.
    marks: Arc<[Vec<u64>]>,
    /// Which events there are for whoever asks.
    reach: Reach,
    /// Nothing is asked for, so no event needs to be looked into.
    everything: bool,
}

/// How many values a filter may hold, in all of its fields: it stays in memory as long as its stream.
const MAX_VALUES: usize = 1000;

/// A filter that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{description}")]
pub struct FilterError {
    /// The field of the request.
    pub field: &'static str,
    /// What is wrong with it.
    pub description: String,
}

impl TryFrom<EventFilter> for Filter {
    type Error = FilterError;

    fn try_from(filter: EventFilter) -> Result<Self, FilterError> {
        let everything = filter == EventFilter::default();
        let EventFilter {
            providers,
            accounts,
            environments,
            kinds,
            outcomes,
            subject_ids,
            external_ids,
            verification_ids,
            final_only,
        } = filter;
        let strings = [
            &providers,
            &accounts,
            &subject_ids,
            &external_ids,
            &verification_ids,
        ];
        let numbers = environments.len() + kinds.len() + outcomes.len();
        if numbers + strings.map(Vec::len).iter().sum::<usize>() > MAX_VALUES {
            return Err(FilterError {
                field: "filter",
                description: format!("holds more than {MAX_VALUES} values"),
            });
        }
        let mut marks: Vec<Vec<u64>> = [
            of_texts(Field::Provider, &providers),
            of_texts(Field::Account, &accounts),
            of_numbers(Field::Environment, &environments),
            of_numbers(Field::Kind, &kinds),
            of_numbers(Field::Outcome, &outcomes),
            of_texts(Field::SubjectId, &subject_ids),
            of_texts(Field::ExternalId, &external_ids),
            of_texts(Field::VerificationId, &verification_ids),
        ]
        .into();
        if final_only {
            marks.push(of_numbers(Field::Finality, &[Finality::Final.into()]));
        }
        marks.retain(|any_of| !any_of.is_empty());
        Ok(Self {
            marks: marks.into(),
            providers: HashSet::from_iter(providers),
            accounts: HashSet::from_iter(accounts),
            environments: known::<Environment>("filter.environments", environments)?,
            kinds: known::<EventKind>("filter.kinds", kinds)?,
            outcomes: known::<Outcome>("filter.outcomes", outcomes)?,
            subject_ids: HashSet::from_iter(subject_ids),
            external_ids: HashSet::from_iter(external_ids),
            verification_ids: HashSet::from_iter(verification_ids),
            final_only,
            reach: Reach::Everything,
            everything,
        })
    }
}

/// The marks of texts. None if one of them is empty, which stands for whatever an event does not have.
fn of_texts(field: Field, texts: &[String]) -> Vec<u64> {
    if texts.iter().any(String::is_empty) {
        return Vec::new();
    }
    let marks = texts.iter().map(|text| marks::of_text(field, text));
    marks.collect()
}

fn of_numbers(field: Field, numbers: &[i32]) -> Vec<u64> {
    let marks = numbers.iter().map(|n| marks::of_number(field, *n));
    marks.collect()
}

/// Values of an enum, without the one that means "not set".
fn known<E: TryFrom<i32>>(
    field: &'static str,
    values: Vec<i32>,
) -> Result<HashSet<i32>, FilterError> {
    for value in &values {
        if *value == 0 || E::try_from(*value).is_err() {
            return Err(FilterError {
                field,
                description: format!("holds {value}, which is not one of its values"),
            });
        }
    }
    Ok(HashSet::from_iter(values))
}

impl Filter {
    /// Whether whoever asks may see the events of all sources.
    pub fn sees_all(&self) -> bool {
        self.reach == Reach::Everything
    }

    /// Whether it lets all events pass.
    pub fn wants_everything(&self) -> bool {
        self.everything
    }

    /// The same filter for someone who may see no more than this.
    pub fn within(self, reach: &Reach) -> Self {
        Self {
            everything: self.everything && *reach == Reach::Everything,
            reach: reach.clone(),
            ..self
        }
    }

    /// The same question as the log asks it.
    pub fn wanted(self: &Arc<Self>) -> Wanted {
        let filter = Arc::clone(self);
        Wanted::new(move |event| filter.matches(event), Arc::clone(&self.marks))
    }

    /// Whether an encoded event is wanted.
    pub fn matches(&self, event: &[u8]) -> bool {
        if self.everything {
            return true;
        }
        // We encoded it ourselves. Were it unreadable all the same, whoever may see everything should see that.
        self.matches_event(event)
            .unwrap_or(self.reach == Reach::Everything)
    }

    /// `None` for an event that cannot be read.
    fn matches_event(&self, event: &[u8]) -> Option<bool> {
        let event = FilteredEvent::read(event)?;
        let verification = event.verification.as_ref();
        let is_final = verification.is_some_and(|v| v.finality == i32::from(Finality::Final));
        let matches = self.reach.covers(event.provider, event.account)
            && wants(&self.providers, Some(event.provider))
            && wants(&self.accounts, Some(event.account))
            && wants(&self.environments, Some(&event.environment))
            && wants(&self.kinds, Some(&event.kind.into()))
            && wants(&self.outcomes, verification.map(|v| &v.outcome))
            && wants(&self.subject_ids, Some(event.subject_id))
            && wants(&self.external_ids, Some(event.external_id))
            && wants(&self.verification_ids, verification.map(|v| v.id))
            && (is_final || !self.final_only);
        Some(matches)
    }
}

/// An empty set wants every value, even none.
fn wants<T, V>(wanted: &HashSet<T>, value: Option<&V>) -> bool
where
    T: Eq + Hash + Borrow<V>,
    V: Eq + Hash + ?Sized,
{
    wanted.is_empty() || value.is_some_and(|value| wanted.contains(value))
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;
    use crate::proto::{
        CredentialShare, Source, Subject, SubjectChange, Verification, VerificationEvent,
        verification_event::Detail,
    };

    fn event(number: u8, finality: Finality) -> VerificationEvent {
        let outcome = if number == 1 {
            Outcome::Approved
        } else {
            Outcome::Rejected
        };
        let environment = if number == 1 {
            Environment::Live
        } else {
            Environment::Sandbox
        };
        VerificationEvent {
            source: Some(Source {
                provider: format!("provider-{number}"),
                account: format!("account-{number}"),
                environment: environment.into(),
                ..Default::default()
            }),
            subject: Some(Subject {
                provider_subject_id: format!("subject-{number}"),
                external_id: format!("external-{number}"),
                ..Default::default()
            }),
            detail: Some(Detail::Verification(Verification {
                verification_id: format!("verification-{number}"),
                outcome: outcome.into(),
                finality: finality.into(),
                ..Default::default()
            })),
            ..Default::default()
        }
    }

    fn matches(filter: &EventFilter, event: &VerificationEvent) -> bool {
        let filter = Filter::try_from(filter.clone()).unwrap();
        filter.matches(&event.encode_to_vec())
    }

    #[test]
    fn what_cannot_be_read_is_seen_by_who_may_see_everything() {
        let filter = EventFilter {
            final_only: true,
            ..Default::default()
        };
        let filter = Filter::try_from(filter).unwrap();
        let limited = filter.clone().within(&Reach::Nothing);
        // A field that is cut off, and a provider that is no text.
        for event in [&b"\x12\x05"[..], b"\x12\x03\x0a\x01\xff"] {
            assert!(filter.matches(event) && !limited.matches(event));
        }
    }

    #[test]
    fn each_field_lets_its_values_pass_and_no_others() {
        let list = |value: &str| vec![value.to_owned()];
        let all = EventFilter {
            providers: list("provider-1"),
            accounts: list("account-1"),
            environments: vec![Environment::Live.into()],
            kinds: vec![EventKind::Verification.into()],
            outcomes: vec![Outcome::Approved.into()],
            subject_ids: list("subject-1"),
            external_ids: list("external-1"),
            verification_ids: list("verification-1"),
            final_only: true,
        };
        let empty = EventFilter::default;
        let single = [
            EventFilter {
                providers: all.providers.clone(),
                ..empty()
            },
            EventFilter {
                accounts: all.accounts.clone(),
                ..empty()
            },
            EventFilter {
                environments: all.environments.clone(),
                ..empty()
            },
            EventFilter {
                outcomes: all.outcomes.clone(),
                ..empty()
            },
            EventFilter {
                subject_ids: all.subject_ids.clone(),
                ..empty()
            },
            EventFilter {
                external_ids: all.external_ids.clone(),
                ..empty()
            },
            EventFilter {
                verification_ids: all.verification_ids.clone(),
                ..empty()
            },
            EventFilter {
                final_only: true,
                ..empty()
            },
        ];
        let (wanted, other) = (event(1, Finality::Final), event(2, Finality::NotFinal));
        let change = VerificationEvent {
            detail: Some(Detail::SubjectChange(SubjectChange::default())),
            ..event(1, Finality::Final)
        };
        assert!(matches(&all, &wanted) && matches(&empty(), &wanted) && matches(&empty(), &change));
        for filter in single {
            assert!(matches(&filter, &wanted), "{filter:?}");
            assert!(!matches(&filter, &other), "{filter:?}");
        }
        let kinds = EventFilter {
            kinds: all.kinds.clone(),
            ..empty()
        };
        assert!(matches(&kinds, &wanted) && !matches(&kinds, &change));
        let share = VerificationEvent {
            detail: Some(Detail::CredentialShare(CredentialShare::default())),
            ..event(1, Finality::Final)
        };
        for (kind, one, others) in [
            (EventKind::SubjectChange, &change, [&wanted, &share]),
            (EventKind::CredentialShare, &share, [&wanted, &change]),
        ] {
            let kinds = EventFilter {
                kinds: vec![kind.into()],
                ..empty()
            };
            assert!(matches(&kinds, one) && others.iter().all(|other| !matches(&kinds, other)));
        }

        // Fields are combined with AND, the values of one with OR.
        let both = EventFilter {
            providers: vec!["provider-1".to_owned(), "provider-2".to_owned()],
            ..empty()
        };
        assert!(matches(&both, &wanted) && matches(&both, &other));
        let contradictory = EventFilter {
            accounts: list("account-2"),
            ..all
        };
        assert!(!matches(&contradictory, &wanted));
    }
}
