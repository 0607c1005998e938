//! A webhook in a file: the HTTP request exactly as it arrived, or only its body.
//!
//! A file whose name ends in `.http` holds the request line, the headers, an empty line and the body, byte for byte.
//! Any other file is a body.

use bytes::Bytes;

use crate::provider::{Headers, RawWebhook};

/// The file is not an HTTP request.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an HTTP request: {0}")]
pub struct HttpFileError(&'static str);

/// Reads a request: request line, headers, an empty line, the body. Lines may end with or without a carriage return.
pub fn parse(file: &Bytes) -> Result<RawWebhook, HttpFileError> {
    let mut headers = Headers::default();
    let mut rest = file.clone();
    next_line(&mut rest).ok_or(HttpFileError("there is no request line"))?;
    loop {
        let line = next_line(&mut rest).ok_or(HttpFileError("no empty line ends the headers"))?;
        if line.is_empty() {
            break;
        }
        let line =
            std::str::from_utf8(&line).map_err(|_| HttpFileError("a header is not in UTF-8"))?;
        let (name, value) = line
            .split_once(':')
            .ok_or(HttpFileError("a header has no colon"))?;
        headers.push(name, value.trim());
    }
    Ok(RawWebhook {
        payload: rest,
        headers,
    })
}

fn next_line(rest: &mut Bytes) -> Option<Bytes> {
    let end = rest.iter().position(|b| *b == b'\n')?;
    let line = rest.split_to(end + 1);
    Some(line.slice_ref(line.trim_ascii_end()))
}

/// Writes a request to `/webhooks/{provider}`.
pub fn write(provider: &str, webhook: &RawWebhook) -> Vec<u8> {
    let mut file = format!("POST /webhooks/{provider} HTTP/1.1\n").into_bytes();
    for (name, value) in webhook.headers.iter() {
        file.extend_from_slice(format!("{name}: {value}\n").as_bytes());
    }
    file.push(b'\n');
    file.extend_from_slice(&webhook.payload);
    file
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_read_byte_for_byte() {
        let file = Bytes::from_static(b"POST / HTTP/1.1\r\nA: 1\r\nb:  x: y \n\n{\n\n}\n");
        let webhook = parse(&file).unwrap();
        let headers: Vec<_> = webhook.headers.iter().collect();
        assert_eq!(headers, [("A", "1"), ("b", "x: y")]);
        assert_eq!(&webhook.payload[..], b"{\n\n}\n");

        let written = parse(&write("gu1", &webhook).into()).unwrap();
        assert_eq!(written.payload, webhook.payload);
        assert_eq!(written.headers, webhook.headers);
    }

    #[test]
    fn a_file_that_is_no_request_is_refused() {
        for file in ["", "{}", "POST /\nno colon\n\n", "POST /\nA: 1\n"] {
            assert!(parse(&Bytes::from(file)).is_err(), "{file:?}");
        }
    }
}
