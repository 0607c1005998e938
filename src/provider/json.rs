//! JSON as providers write it: read without trust, and never written again before its signature is checked.

use std::io;

use bytes::Bytes;
use jiff::tz::Offset;
use prost_types::{Struct, Timestamp, value::Kind};
use serde::{
    Deserialize, Deserializer,
    de::{DeserializeOwned, Error as _, MapAccess, Visitor},
};
use serde_json::{Map, Value, error::Category, ser::Formatter, value::RawValue};

use super::NormalizeError;

/// Reads a body. A field that the struct does not name is passed over; one that is given twice is an error.
pub(super) fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, NormalizeError> {
    serde_json::from_slice(body).map_err(|error| NormalizeError::Unparseable(describe(&error)))
}

/// Says what is wrong without repeating any of the body, which may hold personal data.
fn describe(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let what = match error.classify() {
        Category::Eof => "the body is cut off",
        Category::Syntax | Category::Io => "the body is not JSON that can be read",
        // These two name a field of ours and nothing from the body.
        Category::Data
            if text.starts_with("missing field") || text.starts_with("duplicate field") =>
        {
            return text;
        }
        Category::Data => "a field has an unexpected type",
    };
    format!("{what}, at line {} column {}", error.line(), error.column())
}

/// An ISO 8601 time with an offset, as RFC 3339 profiles it.
pub(super) fn timestamp(text: &str) -> Result<Timestamp, NormalizeError> {
    let time: jiff::Timestamp = text.parse().map_err(|_| {
        NormalizeError::Unparseable("a time is not ISO 8601 with an offset".to_owned())
    })?;
    // `google.protobuf.Timestamp` holds the years 1 to 9999.
    if Offset::UTC.to_datetime(time).year() < 1 {
        return Err(NormalizeError::Unparseable(
            "a time is before year 1".to_owned(),
        ));
    }
    Ok(Timestamp {
        seconds: time.as_second(),
        nanos: time.subsec_nanosecond(),
    })
}

/// How deep a [`Struct`] may be nested. Each level costs three of the 100 that decoders of protobuf go down.
const MAX_STRUCT_DEPTH: usize = 16;

/// A JSON object as the protobuf type for JSON objects. What is nested too deeply is kept as JSON in a string.
pub(super) fn to_struct(object: Map<String, Value>) -> Struct {
    nested_struct(object, 1)
}

fn nested_struct(object: Map<String, Value>, depth: usize) -> Struct {
    Struct {
        fields: object
            .into_iter()
            .map(|(name, value)| (name, to_value(value, depth)))
            .collect(),
    }
}

fn to_value(value: Value, depth: usize) -> prost_types::Value {
    let kind = match value {
        Value::Null => Kind::NullValue(0),
        Value::Bool(value) => Kind::BoolValue(value),
        // Without `arbitrary_precision` every number of serde_json is an integer or a finite double.
        Value::Number(number) => Kind::NumberValue(number.as_f64().unwrap_or_default()),
        Value::String(text) => Kind::StringValue(text),
        Value::Array(_) | Value::Object(_) if depth == MAX_STRUCT_DEPTH => {
            Kind::StringValue(value.to_string())
        }
        Value::Array(values) => Kind::ListValue(prost_types::ListValue {
            values: values
                .into_iter()
                .map(|value| to_value(value, depth + 1))
                .collect(),
        }),
        Value::Object(object) => Kind::StructValue(nested_struct(object, depth + 1)),
    };
    prost_types::Value { kind: Some(kind) }
}

/// The exact text of some top-level members of a JSON object, in the order asked for.
///
/// `None` when the body is no JSON object in UTF-8 or gives one of the members twice, because then nobody can say
/// which of them is meant.
pub(super) fn members<'b, const N: usize>(
    body: &'b [u8],
    names: [&'static str; N],
) -> Option<[Option<&'b RawValue>; N]> {
    let text = std::str::from_utf8(body).ok()?;
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let members = deserializer.deserialize_map(MemberVisitor { names }).ok()?;
    deserializer.end().ok()?;
    Some(members)
}

struct MemberVisitor<const N: usize> {
    names: [&'static str; N],
}

impl<'de, const N: usize> Visitor<'de> for MemberVisitor<N> {
    type Value = [Option<&'de RawValue>; N];

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut members = [None; N];
        while let Some(name) = map.next_key::<String>()? {
            let value = map.next_value::<&RawValue>()?;
            let Some(index) = self.names.iter().position(|wanted| *wanted == name) else {
                continue;
            };
            if members[index].replace(value).is_some() {
                return Err(A::Error::custom("a member is given twice"));
            }
        }
        Ok(members)
    }
}

/// How a JSON value is written again before it is signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rewrite {
    /// Not at all: the bytes as they are.
    None,
    /// As JavaScript's `JSON.stringify` does: compact, members in their order, nothing escaped that need not be.
    JavaScript,
    /// As PHP's `json_encode` does without flags: as above, with `/` and everything beyond ASCII escaped.
    Php,
}

/// Writes a value again. Whole numbers below 2^53 lose their fraction (`1.00` becomes `1`), as in both languages; of
/// greater and smaller ones the two write the exponent differently, and we as neither.
///
/// `None` when the value is nested too deeply or holds a number that no double can.
pub(super) fn rewrite(value: &RawValue, rewrite: Rewrite) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(value.get().len());
    let formatter = Rewriter {
        php: rewrite == Rewrite::Php,
    };
    let mut from = serde_json::Deserializer::from_str(value.get());
    let mut to = serde_json::Serializer::with_formatter(&mut out, formatter);
    serde_transcode::transcode(&mut from, &mut to).ok()?;
    Some(out)
}

struct Rewriter {
    php: bool,
}

impl Formatter for Rewriter {
    fn write_f64<W: ?Sized + io::Write>(&mut self, writer: &mut W, value: f64) -> io::Result<()> {
        const EXACT: f64 = 9_007_199_254_740_992.0;
        let value = value + 0.0; // no negative zero
        if value.fract() == 0.0 && value.abs() < EXACT {
            write!(writer, "{value:.0}")
        } else {
            serde_json::ser::CompactFormatter.write_f64(writer, value)
        }
    }

    fn write_string_fragment<W: ?Sized + io::Write>(
        &mut self,
        writer: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        if !self.php {
            return writer.write_all(fragment.as_bytes());
        }
        for char in fragment.chars() {
            match char {
                '/' => writer.write_all(b"\\/")?,
                _ if char.is_ascii() => writer.write_all(&[char as u8])?,
                _ => {
                    for unit in char.encode_utf16(&mut [0; 2]) {
                        write!(writer, "\\u{unit:04x}")?;
                    }
                }
            }
        }
        Ok(())
    }
}

/// The body with a text member set: in its place when the body has it, else as the first one. The text must not need
/// escaping.
pub(super) fn with_member(body: &Bytes, name: &'static str, text: &str) -> Option<Bytes> {
    let [member] = members(body, [name])?;
    let (start, end, new) = if let Some(member) = member {
        let member = body.slice_ref(member.get().as_bytes());
        let start = member.as_ptr().addr() - body.as_ptr().addr();
        (start, start + member.len(), format!("\"{text}\""))
    } else {
        let start = body.iter().position(|b| *b == b'{')? + 1;
        (start, start, format!("\"{name}\":\"{text}\","))
    };
    Some(
        [&body[..start], new.as_bytes(), &body[end..]]
            .concat()
            .into(),
    )
}

/// A value that providers write as text or as a number: kept as text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TextOrNumber(pub(super) String);

impl<'de> Deserialize<'de> for TextOrNumber {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Value::deserialize(deserializer)? {
            Value::String(text) => Ok(Self(text)),
            Value::Number(number) => Ok(Self(number.to_string())),
            _ => Err(D::Error::custom("neither text nor a number")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rewritten(text: &str, to: Rewrite) -> String {
        let value: &RawValue = serde_json::from_str(text).unwrap();
        String::from_utf8(rewrite(value, to).unwrap()).unwrap()
    }

    #[test]
    fn a_value_is_written_again_as_either_language_would() {
        let text =
            r#"{ "b": "A/Zürich 😀\n\u001f", "a" : [1.00, 2.5, -0.0, 7, null, true], "b": {} }"#;
        assert_eq!(
            rewritten(text, Rewrite::JavaScript),
            r#"{"b":"A/Zürich 😀\n\u001f","a":[1,2.5,0,7,null,true],"b":{}}"#
        );
        assert_eq!(
            rewritten(text, Rewrite::Php),
            r#"{"b":"A\/Z\u00fcrich \ud83d\ude00\n\u001f","a":[1,2.5,0,7,null,true],"b":{}}"#
        );
    }

    #[test]
    fn members_are_the_exact_text_and_never_ambiguous() {
        let body = br#" { "x":1, "data" : {"a": 1.00 ,"data":2} , "sign":"s" } "#;
        let [data, sign, other] = members(body, ["data", "sign", "other"]).unwrap();
        assert_eq!(data.unwrap().get(), r#"{"a": 1.00 ,"data":2}"#);
        assert_eq!(sign.unwrap().get(), r#""s""#);
        assert!(other.is_none());

        assert!(members(br#"{"data":1,"data":2}"#, ["data"]).is_none());
        assert!(members(br#"{"data":1,"d\u0061ta":2}"#, ["data"]).is_none());
        assert!(members(br#"{"data":1} {}"#, ["data"]).is_none());
        assert!(members(b"[1]", ["data"]).is_none());
        assert!(members(b"\xff", ["data"]).is_none());
    }

    #[test]
    fn a_member_is_set_in_its_place_or_first() {
        let set = |body: &'static str| with_member(&Bytes::from(body), "sign", "ab").unwrap();
        assert_eq!(
            &set(r#"{"a":1,"sign": "" ,"b":2}"#)[..],
            br#"{"a":1,"sign": "ab" ,"b":2}"#
        );
        assert_eq!(&set(r#" {"a":1}"#)[..], br#" {"sign":"ab","a":1}"#);
    }

    #[test]
    fn what_is_wrong_is_said_without_the_body() {
        #[derive(Debug, Deserialize)]
        struct Body {
            #[expect(dead_code, reason = "only read by serde")]
            count: u32,
        }
        let error = |body: &[u8]| parse::<Body>(body).unwrap_err().to_string();
        assert_eq!(
            error(br#"{"count":"Jane Doe"}"#),
            "a field has an unexpected type, at line 1 column 19"
        );
        assert!(error(br#"{}"#).starts_with("missing field `count`"));
        assert!(error(br#"{"count":1,"count":2}"#).starts_with("duplicate field `count`"));
        assert_eq!(
            error(br#"{"count":"#),
            "the body is cut off, at line 1 column 9"
        );
        assert!(error(br#"{"count":1e999}"#).starts_with("the body is not JSON"));
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

    #[test]
    fn times_need_an_offset_and_a_year_that_protobuf_can_hold() {
        assert_eq!(
            timestamp("2026-05-12T13:07:30+02:00").unwrap(),
            Timestamp {
                seconds: 1_778_584_050,
                nanos: 0
            }
        );
        assert_eq!(
            timestamp("2026-05-12T11:07:30.250Z").unwrap().nanos,
            250_000_000
        );
        for bad in [
            "",
            "yesterday",
            "2026-05-12T13:07:30",
            "-000001-01-01T00:00:00Z",
        ] {
            assert!(timestamp(bad).is_err(), "{bad}");
        }
    }
}
