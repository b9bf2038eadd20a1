//! [`Origin`] as an extension of a certificate: not critical, a DER SEQUENCE of four UTF8Strings (node, and the UIDs of node,
//! namespace and account), as ITU-T X.690 writes them.

use kumiko_core::origin::Origin;
use x509_parser::asn1_rs::{FromDer as _, Sequence, ToDer as _, Utf8String};
use x509_parser::prelude::X509Certificate;

/// Arcs of the extension's object identifier: below the arc for numbers that nobody has to register (ITU-T X.667).
pub const OID: [u64; 3] = [2, 25, 860_646_586_367_961_531];
/// Longest string that is taken: a node's name has at most 253 characters, a UID 128.
const MAX_STRING: usize = 253;

/// The extension's content; `None`: a string that is too long to be one of these.
pub fn encode(origin: &Origin) -> Option<Vec<u8>> {
    let Origin { node, node_uid, namespace_uid, account_uid } = origin;
    let all = [node, node_uid, namespace_uid, account_uid];
    if all.iter().any(|one| one.len() > MAX_STRING) {
        return None;
    }
    let strings = all.into_iter().map(|one| Utf8String::new(one));
    Sequence::from_iter_to_der(strings).ok()?.to_der_vec().ok()
}

/// Reads such a content. The error says what is wrong with it.
fn decode(content: &[u8]) -> Result<Origin, String> {
    let (rest, sequence) = Sequence::from_der(content).map_err(|error| error.to_string())?;
    let mut rest_of_it: &[u8] = sequence.content.as_ref();
    let mut next = || {
        let (rest, string) = Utf8String::from_der(rest_of_it).map_err(|error| error.to_string())?;
        rest_of_it = rest;
        let string = string.string();
        if string.len() > MAX_STRING { Err("a string is too long".to_owned()) } else { Ok(string) }
    };
    let origin = Origin { node: next()?, node_uid: next()?, namespace_uid: next()?, account_uid: next()? };
    if rest.is_empty() && rest_of_it.is_empty() { Ok(origin) } else { Err("bytes after its end".to_owned()) }
}

/// What a certificate says; `None`: it says nothing. The error says what is wrong with it.
pub(super) fn of(certificate: &X509Certificate<'_>) -> Result<Option<Origin>, String> {
    let name = OID.map(|arc| arc.to_string()).join(".");
    let mut found = certificate.extensions().iter().filter(|extension| extension.oid.to_id_string() == name);
    match (found.next(), found.next()) {
        (None, _) => Ok(None),
        (Some(one), None) => decode(one.value).map(Some).map_err(|why| format!("where it was given to: {why}")),
        (Some(_), Some(_)) => Err("it says twice where it was given to".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let origin = Origin {
            node: "n1".into(),
            node_uid: "7".into(),
            namespace_uid: String::new(),
            account_uid: "x".repeat(MAX_STRING),
        };
        let content = encode(&origin).unwrap();
        assert_eq!(decode(&content).unwrap(), origin);
        assert_eq!(encode(&Origin { node: "x".repeat(MAX_STRING + 1), ..origin }), None);
        for end in 0..content.len() {
            assert!(decode(&content[..end]).is_err(), "{end}");
        }
        assert_eq!(decode(&[&content[..], &[0]].concat()).unwrap_err(), "bytes after its end");
        // A fifth string, a shorter list, another type.
        assert!(decode(&[0x30, 10, 12, 0, 12, 0, 12, 0, 12, 0, 12, 0]).is_err());
        assert!(decode(&[0x30, 4, 12, 0, 12, 0]).is_err());
        assert!(decode(&[0x30, 8, 4, 0, 12, 0, 12, 0, 12, 0]).is_err());
        assert_eq!(decode(&[0x30, 8, 12, 0, 12, 0, 12, 0, 12, 0]).unwrap(), Origin::default());
    }
}
