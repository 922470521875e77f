//! Keys and values as text: what is printed can be typed, and every byte string can be printed.
//!
//! Text stands for itself. A backslash, a tab, a line feed and a carriage return are `\\`, `\t`, `\n`
//! and `\r`; control characters, and bytes that are not UTF-8, are `\xHH`.

use std::fmt::Write;

/// The text of a byte string, on one line and without tabs.
pub(super) fn escape(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\\' => text.push_str("\\\\"),
                '\t' => text.push_str("\\t"),
                '\n' => text.push_str("\\n"),
                '\r' => text.push_str("\\r"),
                c if c.is_control() => hex(c.encode_utf8(&mut [0; 4]).as_bytes(), &mut text),
                c => text.push(c),
            }
        }
        hex(chunk.invalid(), &mut text);
    }
    text
}

fn hex(bytes: &[u8], text: &mut String) {
    for byte in bytes {
        write!(text, "\\x{byte:02x}").expect("a string takes all");
    }
}

/// The byte string that a text stands for. Bytes that need no escape need not be UTF-8.
///
/// # Errors
/// A sentence about the escape that is none.
pub(super) fn unescape(text: &[u8]) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.iter();
    while let Some(&byte) = rest.next() {
        if byte != b'\\' {
            bytes.push(byte);
            continue;
        }
        bytes.push(match rest.next() {
            Some(b'\\') => b'\\',
            Some(b't') => b'\t',
            Some(b'n') => b'\n',
            Some(b'r') => b'\r',
            Some(b'x') => {
                let mut digit = || char::from(*rest.next()?).to_digit(16);
                let value = digit().and_then(|high| Some(high * 16 + digit()?));
                value.ok_or("\\x is not followed by two hexadecimal digits")? as u8
            }
            Some(&other) => {
                let shown = other.escape_ascii();
                return Err(format!("\\{shown} is no escape: a backslash is \\\\"));
            }
            None => return Err("it ends in a lone backslash: a backslash is \\\\".into()),
        });
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_string_comes_back_from_its_text() {
        let all: Vec<u8> = (0..=255).collect();
        for bytes in [
            &b""[..],
            b"plain",
            "größe ✓".as_bytes(),
            b"a\tb\\n\n\r\0\x7f\xff\xc3",
            &all,
        ] {
            let text = escape(bytes);
            assert!(!text.contains(['\t', '\n', '\r', '\0']), "{text:?}");
            assert_eq!(unescape(text.as_bytes()).unwrap(), bytes, "{text:?}");
        }
        assert_eq!(escape("größe".as_bytes()), "größe");
        assert_eq!(escape(b"\x01\xff\\\t"), "\\x01\\xff\\\\\\t");
    }

    #[test]
    fn text_that_is_not_utf8_stands_for_itself() {
        assert_eq!(unescape(b"\xff\\x41\xc3").unwrap(), b"\xffA\xc3");
    }

    #[test]
    fn wrong_escapes_are_refused() {
        for text in ["\\", "a\\q", "\\x", "\\x4", "\\xg0", "\\x4g", "x\\"] {
            assert!(unescape(text.as_bytes()).is_err(), "{text}");
        }
    }
}
