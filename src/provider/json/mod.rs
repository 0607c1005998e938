//! JSON as providers write it: read without trust, and never written again before its signature is checked.

mod value;

pub(super) use value::{Json, Object, to_struct};

use std::{borrow::Cow, fmt, io, ops::Deref};

use bytes::Bytes;
use prost_types::Timestamp;
use serde::{
    Deserialize, Deserializer,
    de::{Error as _, IgnoredAny, MapAccess, Visitor},
};
use serde_json::{error::Category, ser::Formatter, value::RawValue};

use super::NormalizeError;

/// Reads a body. A field that the struct does not name is passed over; one that is given twice is an error.
pub(super) fn parse<'b, T: Deserialize<'b>>(body: &'b [u8]) -> Result<T, NormalizeError> {
    // UTF-8 is checked for all at once, which is faster than for each text that is read. What is wrong with it may lie in what
    // is passed over.
    let parsed = match std::str::from_utf8(body) {
        Ok(text) => serde_json::from_str(text),
        Err(_) => serde_json::from_slice(body),
    };
    parsed.map_err(|error| NormalizeError::Unparseable(describe(&error)))
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

/// Text of a body: borrowed from it, unless something in it is escaped.
///
/// It is no `Cow`, because serde reads an `Option<Cow<str>>` into a new `String` each time.
#[derive(Default, PartialEq, Eq)]
pub(super) struct Text<'b>(Cow<'b, str>);

impl Text<'_> {
    /// The text as an event has it.
    pub(super) fn owned(&self) -> String {
        self.0.as_ref().to_owned()
    }
}

impl Deref for Text<'_> {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl<'de: 'b, 'b> Deserialize<'de> for Text<'b> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(TextVisitor)
    }
}

struct TextVisitor;

impl<'b> Visitor<'b> for TextVisitor {
    type Value = Text<'b>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("text")
    }

    fn visit_borrowed_str<E>(self, text: &'b str) -> Result<Text<'b>, E> {
        Ok(Text(text.into()))
    }

    fn visit_str<E>(self, text: &str) -> Result<Text<'b>, E> {
        Ok(Text(text.to_owned().into()))
    }
}

/// The text of a field as an event has it: empty where the field is absent.
pub(super) fn owned(text: Option<&Text<'_>>) -> String {
    text.map(Text::owned).unwrap_or_default()
}

/// An ISO 8601 time with an offset, as RFC 3339 profiles it.
pub(super) fn timestamp(text: &str) -> Result<Timestamp, NormalizeError> {
    // `google.protobuf.Timestamp` holds the years 1 to 9999.
    const YEAR_1: i64 = -62_135_596_800;
    let time: jiff::Timestamp = text.parse().map_err(|_| {
        NormalizeError::Unparseable("a time is not ISO 8601 with an offset".to_owned())
    })?;
    // Before 1970 jiff counts the nanoseconds backwards, and protobuf does not.
    let (seconds, nanos) = match (time.as_second(), time.subsec_nanosecond()) {
        (seconds, nanos) if nanos < 0 => (seconds - 1, nanos + 1_000_000_000),
        counted => counted,
    };
    if seconds < YEAR_1 {
        return Err(NormalizeError::Unparseable(
            "a time is before year 1".to_owned(),
        ));
    }
    Ok(Timestamp { seconds, nanos })
}

/// Whether arrays and objects lie in one another deeper than this. Of what is not JSON, the answer means nothing.
pub(crate) fn is_deeper(text: &[u8], most: usize) -> bool {
    opened(text) > most && walks_deeper(text, most)
}

/// How many `[` and `{` there are. Bytes are compared many at a time, as long as their count fits into one too.
fn opened(text: &[u8]) -> usize {
    // The two differ in this bit.
    let opens = |byte: &u8| u8::from(byte | 0x20 == b'{');
    let in_chunk = |chunk: &[u8]| usize::from(chunk.iter().map(opens).sum::<u8>());
    text.chunks(255).map(in_chunk).sum()
}

fn walks_deeper(text: &[u8], most: usize) -> bool {
    let (mut depth, mut in_string, mut escaped) = (0_usize, false, false);
    for byte in text {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            _ if in_string => {}
            b'[' | b'{' => depth += 1,
            b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > most {
            return true;
        }
    }
    false
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

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut members = [None; N];
        while let Some(name) = map.next_key::<Text<'de>>()? {
            let Some(index) = self.names.iter().position(|wanted| *wanted == &*name) else {
                map.next_value::<IgnoredAny>()?;
                continue;
            };
            let value = map.next_value::<&RawValue>()?;
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

/// The value of a field that has two names; refused when they differ.
pub(super) fn one_of<'t>(
    name: &str,
    newest: Option<&'t Text<'_>>,
    older: Option<&'t Text<'_>>,
) -> Result<&'t str, NormalizeError> {
    match (newest, older) {
        (Some(newest), Some(older)) if newest != older => Err(NormalizeError::Contradiction(
            format!("{name} differs from its other name"),
        )),
        (Some(value), _) | (None, Some(value)) => Ok(value),
        (None, None) => Err(NormalizeError::missing(name)),
    }
}

/// A value that providers write as text or as a number: kept as text.
pub(super) struct TextOrNumber<'b>(pub(super) Cow<'b, str>);

impl<'de: 'b, 'b> Deserialize<'de> for TextOrNumber<'b> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Json::deserialize(deserializer)? {
            Json::Text(text) => Ok(Self(text)),
            Json::Number(number) => Ok(Self(number.to_string().into())),
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
    fn depth_is_that_of_arrays_and_objects_outside_of_text() {
        let text = br#"{"a":["[[[[","\"[[[",{"b\\":[1]}],"c":[[]]}"#;
        assert!(is_deeper(text, 3) && !is_deeper(text, 4));
        assert!(is_deeper("[".repeat(1 << 20).as_bytes(), 64));
        assert!(!is_deeper(b"]]]]", 1) && !is_deeper(b"", 0) && !is_deeper(b"1", 0));
        // What is counted is counted beyond what a byte holds.
        assert_eq!(opened(&b"[{".repeat(1000)), 2000);
    }

    #[test]
    fn members_of_any_depth_are_found_without_recursion() {
        // Deep enough for a stack to overflow, were there one.
        let deep = format!("{{\"a\":{}{}}}", "[".repeat(400_000), "]".repeat(400_000));
        let [member] = members(deep.as_bytes(), ["a"]).unwrap();
        assert!(rewrite(member.unwrap(), Rewrite::JavaScript).is_none());
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
    fn text_is_copied_only_where_something_is_escaped() {
        let read = |body: &'static str| serde_json::from_str::<Vec<Option<Text<'_>>>>(body);
        let texts = read(r#"["a\nb", "Zoë", null]"#).unwrap();
        assert!(matches!(&texts[0], Some(Text(Cow::Owned(text))) if text == "a\nb"));
        assert!(matches!(&texts[1], Some(Text(Cow::Borrowed("Zoë")))));
        assert!(texts[2].is_none() && read("[1]").is_err());
    }

    #[test]
    fn what_is_passed_over_need_not_be_utf_8() {
        #[derive(Deserialize)]
        struct Body {
            count: u32,
        }
        let body: Body = parse(b"{\"count\":1,\"other\":\"\xff\"}").unwrap();
        assert_eq!(body.count, 1);
        assert!(parse::<Text<'_>>(b"\"\xff\"").is_err());
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
        let before_1970 = timestamp("1969-12-31T23:59:59.750Z").unwrap();
        assert_eq!((before_1970.seconds, before_1970.nanos), (-1, 750_000_000));
        let first = timestamp("0001-01-01T00:00:00Z").unwrap();
        assert_eq!((first.seconds, first.nanos), (-62_135_596_800, 0));
        for bad in [
            "",
            "yesterday",
            "2026-05-12T13:07:30",
            "-000001-01-01T00:00:00Z",
            "0000-12-31T23:59:59.999Z",
        ] {
            assert!(timestamp(bad).is_err(), "{bad}");
        }
    }
}
