//! Query strings of the admin API: `application/x-www-form-urlencoded`, as the URL standard has it.

/// Adds `name=value` to a query.
pub fn push(query: &mut String, name: &str, value: &str) {
    if !query.is_empty() {
        query.push('&');
    }
    encode(query, name);
    query.push('=');
    encode(query, value);
}

/// Names and values of a query. Bytes that are no UTF-8 become U+FFFD, a `%` that introduces no byte stays itself.
pub fn pairs(query: &str) -> impl Iterator<Item = (String, String)> + '_ {
    query.split('&').filter(|part| !part.is_empty()).map(|part| {
        let (name, value) = part.split_once('=').unwrap_or((part, ""));
        (decode(name), decode(value))
    })
}

fn encode(to: &mut String, text: &str) {
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'*') {
            to.push(char::from(byte));
        } else {
            to.push_str(&format!("%{byte:02X}"));
        }
    }
}

fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        rest = after;
        match (first, after) {
            (b'+', _) => bytes.push(b' '),
            (b'%', [high, low, after @ ..]) => match (digit(*high), digit(*low)) {
                (Some(high), Some(low)) => {
                    bytes.push(high << 4 | low);
                    rest = after;
                }
                _ => bytes.push(b'%'),
            },
            _ => bytes.push(*first),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn digit(byte: u8) -> Option<u8> {
    char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_pushed_comes_back(parts in proptest::collection::vec((".+", ".*"), 0..4)) {
            let mut query = String::new();
            for (name, value) in &parts {
                push(&mut query, name, value);
            }
            prop_assert!(query.is_ascii());
            prop_assert_eq!(pairs(&query).collect::<Vec<_>>(), parts);
        }

        #[test]
        fn any_text_is_read(text in ".*") {
            pairs(&text).for_each(drop);
        }
    }

    #[test]
    fn odd_ones() {
        let read = |query| pairs(query).collect::<Vec<_>>();
        assert_eq!(
            read("a=b+c&%&x=%2"),
            [("a".into(), "b c".into()), ("%".into(), String::new()), ("x".into(), "%2".into())]
        );
        assert_eq!(read(""), []);
    }
}
