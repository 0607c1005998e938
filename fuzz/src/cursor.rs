//! Cursors. The tokens of pages are a mark followed by a cursor, and read by the same function.

use verdict::log::Cursor;

/// A cursor has one text: two texts for one place would be two places to whoever compares them.
pub fn check(text: &str) {
    if let Ok(cursor) = Cursor::decode(text) {
        assert_eq!(cursor.encode(), text);
        assert_eq!(Cursor::decode(&cursor.encode()), Ok(cursor));
    }
}
