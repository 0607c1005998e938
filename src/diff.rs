//! What is different between two events, field by field.

use serde_json::{Map, Value};

use crate::{
    event::{self, JsonError},
    proto::{FieldChange, VerificationEvent},
};

const NOT_SHOWN: &str = "(not shown)";

/// What is different, by the paths of the fields in the JSON of an event. Of personal data and free text only that it is.
pub(crate) fn changes(
    before: &VerificationEvent,
    after: &VerificationEvent,
) -> Result<Vec<FieldChange>, JsonError> {
    let mut changes = Vec::new();
    let (before_json, after_json) = (impersonal(before)?, impersonal(after)?);
    compare("", Some(&before_json), Some(&after_json), &mut changes);
    if texts(before) != texts(after) {
        changes.push(FieldChange {
            field: "verification.reasons.message".to_owned(),
            before: NOT_SHOWN.to_owned(),
            after: NOT_SHOWN.to_owned(),
        });
    }
    if before.personal_data != after.personal_data {
        let shown = |event: &VerificationEvent| match event.personal_data {
            Some(_) => NOT_SHOWN.to_owned(),
            None => String::new(),
        };
        changes.push(FieldChange {
            field: "personal_data".to_owned(),
            before: shown(before),
            after: shown(after),
        });
    }
    Ok(changes)
}

/// The free text of an event, which may name a person.
fn texts(event: &VerificationEvent) -> Vec<String> {
    let mut event = event.clone();
    let texts = event::messages(&mut event).map(std::mem::take);
    texts.filter(|text| !text.is_empty()).collect()
}

fn impersonal(event: &VerificationEvent) -> Result<Value, JsonError> {
    let mut event = VerificationEvent {
        personal_data: None,
        ..event.clone()
    };
    event::messages(&mut event).for_each(String::clear);
    Ok(serde_json::from_str(&event::to_json(&event)?)?)
}

/// Goes down both values as long as both have something to go down into.
fn compare(
    path: &str,
    before: Option<&Value>,
    after: Option<&Value>,
    changes: &mut Vec<FieldChange>,
) {
    match (before, after) {
        (Some(Value::Object(before)), Some(Value::Object(after))) => {
            compare_members(path, before, after, changes);
        }
        (Some(Value::Array(_)), _) | (_, Some(Value::Array(_))) => {
            let (before, after) = (elements(before), elements(after));
            for index in 0..before.len().max(after.len()) {
                let path = format!("{path}[{index}]");
                compare(&path, before.get(index), after.get(index), changes);
            }
        }
        _ if before == after => {}
        _ => changes.push(FieldChange {
            field: path.to_owned(),
            before: before.map(Value::to_string).unwrap_or_default(),
            after: after.map(Value::to_string).unwrap_or_default(),
        }),
    }
}

/// The elements of a list. The JSON of protobuf leaves out one that is empty.
fn elements(list: Option<&Value>) -> &[Value] {
    list.and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn compare_members(
    path: &str,
    before: &Map<String, Value>,
    after: &Map<String, Value>,
    changes: &mut Vec<FieldChange>,
) {
    let only_after = after.keys().filter(|name| !before.contains_key(*name));
    for name in before.keys().chain(only_after) {
        let path = match path {
            "" => name.clone(),
            _ => format!("{path}.{name}"),
        };
        compare(&path, before.get(name), after.get(name), changes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::{
        Outcome, PersonalData, Reason, ReasonCode, SubjectChange, Verification,
        verification_event::Detail,
    };

    fn event(verification: Verification, name: Option<&str>) -> VerificationEvent {
        VerificationEvent {
            detail: Some(Detail::Verification(verification)),
            personal_data: name.map(|name| PersonalData {
                full_name: name.to_owned(),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    fn reason(code: ReasonCode) -> Reason {
        Reason {
            code: code.into(),
            ..Default::default()
        }
    }

    fn shown(before: &VerificationEvent, after: &VerificationEvent) -> Vec<[String; 3]> {
        let changes = changes(before, after).unwrap();
        let shown = changes.into_iter().map(|c| [c.field, c.before, c.after]);
        shown.collect()
    }

    #[test]
    fn each_field_that_differs_is_named_by_its_path() {
        let before = Verification {
            outcome: Outcome::Rejected.into(),
            level: "basic".to_owned(),
            reasons: vec![reason(ReasonCode::Other)],
            ..Default::default()
        };
        let after = Verification {
            outcome: Outcome::Approved.into(),
            verification_id: "v".to_owned(),
            reasons: vec![reason(ReasonCode::PolicyRule), reason(ReasonCode::Other)],
            ..Default::default()
        };
        assert_eq!(
            shown(&event(before.clone(), None), &event(after, None)),
            [
                ["verification.level", r#""basic""#, ""],
                [
                    "verification.outcome",
                    r#""OUTCOME_REJECTED""#,
                    r#""OUTCOME_APPROVED""#
                ],
                [
                    "verification.reasons[0].code",
                    r#""REASON_CODE_OTHER""#,
                    r#""REASON_CODE_POLICY_RULE""#
                ],
                [
                    "verification.reasons[1]",
                    "",
                    r#"{"code":"REASON_CODE_OTHER"}"#
                ],
                ["verification.verification_id", "", r#""v""#],
            ]
        );
        let without_reasons = Verification {
            reasons: Vec::new(),
            ..before.clone()
        };
        assert_eq!(
            shown(&event(without_reasons, None), &event(before.clone(), None)),
            [[
                "verification.reasons[0]",
                "",
                r#"{"code":"REASON_CODE_OTHER"}"#
            ]]
        );
        let same = event(before, None);
        assert!(shown(&same, &same).is_empty());
        // Another kind of event is another field.
        let change = VerificationEvent {
            detail: Some(Detail::SubjectChange(SubjectChange::default())),
            ..Default::default()
        };
        let paths: Vec<String> = shown(&same, &change)
            .into_iter()
            .map(|[path, ..]| path)
            .collect();
        assert_eq!(paths, ["verification", "subject_change"]);
    }

    #[test]
    fn personal_data_is_not_shown() {
        let with = |name| event(Verification::default(), name);
        let differ = shown(&with(Some("Erika")), &with(Some("Max")));
        assert_eq!(differ, [["personal_data", NOT_SHOWN, NOT_SHOWN]]);
        let gone = shown(&with(Some("Erika")), &with(None));
        assert_eq!(gone, [["personal_data", NOT_SHOWN, ""]]);
    }
}
