//! JSON as a whole, where a provider puts what it likes.

use std::{borrow::Cow, collections::BTreeMap, fmt};

use prost_types::{Struct, value::Kind};
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{Error as _, MapAccess, SeqAccess, Visitor},
};
use serde_json::Number;

use super::Text;

/// Any JSON, with a member that is given twice refused. Text is borrowed as in [`Text`].
///
/// `serde_json::Value` keeps the last of two, reads a certain member name as JSON once more, past the limit on depth, and
/// copies all text.
pub(in crate::provider) enum Json<'b> {
    Null,
    Bool(bool),
    Number(Number),
    Text(Cow<'b, str>),
    Array(Vec<Self>),
    Object(Object<'b>),
}

/// A JSON object, with a member that is given twice refused.
pub(in crate::provider) struct Object<'b>(pub(in crate::provider) BTreeMap<Cow<'b, str>, Json<'b>>);

impl<'b> Json<'b> {
    /// A member, if it is an object that has it.
    pub(in crate::provider) fn get(&self, name: &str) -> Option<&Self> {
        match self {
            Self::Object(Object(members)) => members.get(name),
            _ => None,
        }
    }

    /// The number that it is.
    pub(in crate::provider) fn as_f64(&self) -> Option<f64> {
        match self {
            Self::Number(number) => number.as_f64(),
            _ => None,
        }
    }

    /// The text that it is.
    pub(in crate::provider) fn as_str(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }
}

impl<'b> From<Text<'b>> for Json<'b> {
    fn from(Text(text): Text<'b>) -> Self {
        Self::Text(text)
    }
}

impl<'b> FromIterator<(&'static str, Json<'b>)> for Object<'b> {
    fn from_iter<T: IntoIterator<Item = (&'static str, Json<'b>)>>(members: T) -> Self {
        let members = members.into_iter();
        Self(members.map(|(name, json)| (name.into(), json)).collect())
    }
}

impl<'de: 'b, 'b> Deserialize<'de> for Json<'b> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(JsonVisitor)
    }
}

impl<'de: 'b, 'b> Deserialize<'de> for Object<'b> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Json::deserialize(deserializer)? {
            Json::Object(object) => Ok(object),
            _ => Err(D::Error::custom("not an object")),
        }
    }
}

struct JsonVisitor;

impl<'b> Visitor<'b> for JsonVisitor {
    type Value = Json<'b>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Json<'b>, E> {
        Ok(Json::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Json<'b>, E> {
        Ok(Json::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Json<'b>, E> {
        Ok(Json::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Json<'b>, E> {
        Ok(Json::Number(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Json<'b>, E> {
        Ok(Number::from_f64(value).map_or(Json::Null, Json::Number))
    }

    fn visit_borrowed_str<E>(self, text: &'b str) -> Result<Json<'b>, E> {
        Ok(Json::Text(text.into()))
    }

    fn visit_str<E>(self, text: &str) -> Result<Json<'b>, E> {
        Ok(Json::Text(text.to_owned().into()))
    }

    fn visit_seq<A: SeqAccess<'b>>(self, mut seq: A) -> Result<Json<'b>, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = seq.next_element()? {
            values.push(value);
        }
        Ok(Json::Array(values))
    }

    fn visit_map<A: MapAccess<'b>>(self, mut map: A) -> Result<Json<'b>, A::Error> {
        let mut members = BTreeMap::new();
        while let Some((Text(name), value)) = map.next_entry::<Text<'b>, _>()? {
            if members.insert(name, value).is_some() {
                return Err(A::Error::custom("duplicate field in an object"));
            }
        }
        Ok(Json::Object(Object(members)))
    }
}

impl Serialize for Json<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Null => serializer.serialize_unit(),
            Self::Bool(value) => serializer.serialize_bool(*value),
            Self::Number(number) => number.serialize(serializer),
            Self::Text(text) => serializer.serialize_str(text),
            Self::Array(values) => serializer.collect_seq(values),
            Self::Object(Object(members)) => serializer.collect_map(members),
        }
    }
}

/// How deep a [`Struct`] may be nested. Each level costs three of the 100 that decoders of protobuf go down.
const MAX_STRUCT_DEPTH: usize = 16;

/// A JSON object as the protobuf type for JSON objects. What is nested too deeply is kept as JSON in a string.
pub(in crate::provider) fn to_struct(object: Object<'_>) -> Struct {
    nested_struct(object, 1)
}

fn nested_struct(Object(members): Object<'_>, depth: usize) -> Struct {
    let member = |(name, value): (Cow<'_, str>, _)| (name.into_owned(), to_value(value, depth));
    Struct {
        fields: members.into_iter().map(member).collect(),
    }
}

fn to_value(value: Json<'_>, depth: usize) -> prost_types::Value {
    let kind = match value {
        Json::Null => Kind::NullValue(0),
        Json::Bool(value) => Kind::BoolValue(value),
        // Without `arbitrary_precision` every number of serde_json is an integer or a finite double.
        Json::Number(number) => Kind::NumberValue(number.as_f64().unwrap_or_default()),
        Json::Text(text) => Kind::StringValue(text.into_owned()),
        Json::Array(_) | Json::Object(_) if depth == MAX_STRUCT_DEPTH => {
            let text = serde_json::to_string(&value);
            Kind::StringValue(text.expect("what was JSON can be written as JSON"))
        }
        Json::Array(values) => Kind::ListValue(prost_types::ListValue {
            values: values
                .into_iter()
                .map(|value| to_value(value, depth + 1))
                .collect(),
        }),
        Json::Object(object) => Kind::StructValue(nested_struct(object, depth + 1)),
    };
    prost_types::Value { kind: Some(kind) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_read_without_surprises() {
        let read = |text: &str| {
            serde_json::from_str::<Json<'_>>(text).map(|json| serde_json::to_string(&json).unwrap())
        };
        let text = r#"{"a":[null,true,-1,2,2.5,"x\n",{}],"b":{"a":1}}"#;
        assert_eq!(read(text).unwrap(), text);
        assert!(read(r#"{"a":1,"b":{"c":1,"c":2}}"#).is_err());
        assert!(read(r#"{"a":1,"\u0061":1}"#).is_err());
        // The name by which serde_json would parse the text.
        let raw = r#"{"$serde_json::private::RawValue":"[[1]]"}"#;
        assert_eq!(read(raw).unwrap(), raw);
        assert!(serde_json::from_str::<Object>("[]").is_err());
    }

    #[test]
    fn whatever_its_depth_a_struct_can_be_decoded_again() {
        use prost::Message;
        for (open, close) in [("{\"a\":", "}"), ("[", "]")] {
            for depth in [1, 15, 16, 17, 40, 120] {
                let text = format!("{{\"a\":{}1{}}}", open.repeat(depth), close.repeat(depth));
                let object = serde_json::from_str(&text).unwrap();
                let bytes = to_struct(object).encode_to_vec();
                let decoded = Struct::decode(&bytes[..]).unwrap();
                let kept = format!("{decoded:?}").contains("StringValue");
                assert_eq!(kept, depth >= 16, "{depth} levels of {open}");
            }
        }
    }
}
