//! Who calls, and what they may do: the one place that decides what a caller sees and changes.
//!
//! [`Callers`] knows all callers of the configuration and finds out which of them calls.

mod authentication;
mod jwk;
mod jwks;
mod jwt;
mod refused;
mod token;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, LazyLock},
};

use crate::proto::Scope;

pub(crate) use authentication::certificate_name;
pub use authentication::{Callers, Credential, Identity, Member, Validity};
pub use jwks::{KeySet, KeySetError, Place};
pub use jwt::Issuer;
pub use refused::Refused;
pub use token::{NewToken, Token, TokenHash};

/// Who calls.
#[derive(Clone, Debug)]
pub struct Caller {
    /// Its name in the configuration; `None` when callers are not asked who they are.
    name: Option<Arc<str>>,
    /// For each scope that the caller has, how far it reaches.
    reaches: Arc<BTreeMap<Scope, Reach>>,
}

/// How far a scope of a caller reaches.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Reach {
    /// To no source.
    #[default]
    Nothing,
    /// To sources within any of these limits.
    Limited(Vec<Limits>),
    /// To all sources.
    Everything,
}

/// Some sources. An empty set means all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Providers.
    pub providers: BTreeSet<String>,
    /// Accounts.
    pub accounts: BTreeSet<String>,
}

impl Limits {
    fn is_everything(&self) -> bool {
        self.providers.is_empty() && self.accounts.is_empty()
    }

    fn cover(&self, provider: &str, account: &str) -> bool {
        let within = |set: &BTreeSet<String>, value| set.is_empty() || set.contains(value);
        within(&self.providers, provider) && within(&self.accounts, account)
    }
}

impl Reach {
    /// Whether this source is within reach.
    pub fn covers(&self, provider: &str, account: &str) -> bool {
        match self {
            Self::Nothing => false,
            Self::Limited(limits) => limits.iter().any(|limits| limits.cover(provider, account)),
            Self::Everything => true,
        }
    }

    fn extend(&mut self, limits: Limits) {
        match self {
            Self::Everything => {}
            _ if limits.is_everything() => *self = Self::Everything,
            Self::Nothing => *self = Self::Limited(vec![limits]),
            Self::Limited(known) => known.push(limits),
        }
    }
}

impl Caller {
    /// Whoever calls, when callers are not asked who they are: they may do everything.
    pub fn anyone() -> Self {
        /// Made once: every call has one.
        static ANYONE: LazyLock<Caller> = LazyLock::new(|| {
            let scopes = [
                Scope::Ingest,
                Scope::Subscribe,
                Scope::PersonalData,
                Scope::Backfill,
                Scope::Admin,
            ];
            Caller {
                name: None,
                reaches: Arc::new(scopes.map(|scope| (scope, Reach::Everything)).into()),
            }
        });
        ANYONE.clone()
    }

    /// A caller of the configuration, with its scopes. One that is granted twice reaches as far as both together.
    pub fn new(name: &str, grants: impl IntoIterator<Item = (Scope, Limits)>) -> Self {
        let mut reaches: BTreeMap<Scope, Reach> = BTreeMap::new();
        for (scope, limits) in grants {
            reaches.entry(scope).or_default().extend(limits);
        }
        Self {
            name: Some(name.into()),
            reaches: Arc::new(reaches),
        }
    }

    /// Its name in the configuration; `None` when callers are not asked who they are.
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// How far a scope of the caller reaches.
    pub fn reach(&self, scope: Scope) -> &Reach {
        self.reaches.get(&scope).unwrap_or(&Reach::Nothing)
    }

    /// Whether the caller has a scope at all.
    pub fn has(&self, scope: Scope) -> bool {
        *self.reach(scope) != Reach::Nothing
    }

    /// Whether the caller has a scope for this source.
    pub fn may(&self, scope: Scope, provider: &str, account: &str) -> bool {
        self.reach(scope).covers(provider, account)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(providers: &[&str], accounts: &[&str]) -> Limits {
        let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        Limits {
            providers: set(providers),
            accounts: set(accounts),
        }
    }

    #[test]
    fn a_scope_reaches_as_far_as_its_grants_together_and_no_other_scope_reaches_with_it() {
        let caller = Caller::new(
            "risk",
            [
                (Scope::Subscribe, limits(&["gu1"], &["a", "b"])),
                (Scope::Subscribe, limits(&[], &["c"])),
                (Scope::Ingest, limits(&["gu1"], &[])),
                (Scope::Ingest, Limits::default()),
            ],
        );
        let may = |scope, provider, account| caller.may(scope, provider, account);
        assert!(may(Scope::Subscribe, "gu1", "a") && may(Scope::Subscribe, "gu1", "b"));
        assert!(may(Scope::Subscribe, "kayle", "c"));
        assert!(!may(Scope::Subscribe, "kayle", "a") && !may(Scope::Subscribe, "gu1", "d"));
        assert!(!may(Scope::Subscribe, "Gu1", "a") && !may(Scope::Subscribe, "", ""));
        assert_eq!(*caller.reach(Scope::Ingest), Reach::Everything);
        for scope in [Scope::PersonalData, Scope::Backfill, Scope::Admin] {
            assert!(!caller.has(scope) && !may(scope, "gu1", "a"));
        }
    }
}
