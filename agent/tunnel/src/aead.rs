//! The one place that touches a cipher: seal and open a record's bytes in place.

use ring::aead;
use rustls::ConnectionTrafficSecrets;
use thiserror::Error;

/// Length of the authentication tag of every TLS 1.3 cipher suite.
pub(crate) const TAG: usize = 16;
/// Length of a record's header.
pub(crate) const HEADER: usize = 5;

/// A record could not be sealed or opened. No more is said: an attacker must not learn why.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("record could not be opened")]
pub struct BadRecord;

/// Keys that rustls handed out and that cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the cipher suite is not one that this agent can seal records with")]
pub struct UnsupportedSuite;

/// An AEAD with a key: what a record layer needs from a crypto library, and no more.
pub(crate) trait Aead: Send {
    /// Encrypts in place and returns the tag.
    fn seal(&self, nonce: [u8; 12], header: &[u8; HEADER], bytes: &mut [u8]) -> Result<[u8; TAG], BadRecord>;

    /// Checks the tag at the end and decrypts in place; returns the length of what is left without the tag.
    fn open(&self, nonce: [u8; 12], header: &[u8; HEADER], bytes: &mut [u8]) -> Result<usize, BadRecord>;
}

/// ring's.
///
/// ring keeps the expanded key in its own memory and does not wipe it on drop; the bytes it was made from are wiped
/// (rustls wipes [`ConnectionTrafficSecrets`]).
struct Ring(aead::LessSafeKey);

impl Aead for Ring {
    fn seal(&self, nonce: [u8; 12], header: &[u8; HEADER], bytes: &mut [u8]) -> Result<[u8; TAG], BadRecord> {
        let nonce = aead::Nonce::assume_unique_for_key(nonce);
        let tag = self.0.seal_in_place_separate_tag(nonce, aead::Aad::from(header), bytes).map_err(|_| BadRecord)?;
        tag.as_ref().try_into().map_err(|_| BadRecord)
    }

    fn open(&self, nonce: [u8; 12], header: &[u8; HEADER], bytes: &mut [u8]) -> Result<usize, BadRecord> {
        let nonce = aead::Nonce::assume_unique_for_key(nonce);
        let opened = self.0.open_in_place(nonce, aead::Aad::from(header), bytes).map_err(|_| BadRecord)?;
        Ok(opened.len())
    }
}

/// A key for one direction, with the nonces that RFC 8446 section 5.3 prescribes.
pub(crate) struct Key {
    aead: Box<dyn Aead>,
    iv: [u8; 12],
    sequence: u64,
}

impl Key {
    /// Takes over from rustls at record number `sequence`.
    pub(crate) fn new(sequence: u64, secrets: ConnectionTrafficSecrets) -> Result<Self, UnsupportedSuite> {
        let (algorithm, key, iv) = match &secrets {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (&aead::AES_128_GCM, key, iv),
            ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (&aead::AES_256_GCM, key, iv),
            ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => (&aead::CHACHA20_POLY1305, key, iv),
            _ => return Err(UnsupportedSuite),
        };
        let key = aead::UnboundKey::new(algorithm, key.as_ref()).map_err(|_| UnsupportedSuite)?;
        let iv = iv.as_ref().try_into().map_err(|_| UnsupportedSuite)?;
        Ok(Self { aead: Box::new(Ring(aead::LessSafeKey::new(key))), iv, sequence })
    }

    /// Records that this key has sealed or opened.
    pub(crate) fn sequence(&self) -> u64 {
        self.sequence
    }

    pub(crate) fn seal(&mut self, header: &[u8; HEADER], bytes: &mut [u8]) -> Result<[u8; TAG], BadRecord> {
        let nonce = self.next_nonce()?;
        self.aead.seal(nonce, header, bytes)
    }

    pub(crate) fn open(&mut self, header: &[u8; HEADER], bytes: &mut [u8]) -> Result<usize, BadRecord> {
        let nonce = self.next_nonce()?;
        self.aead.open(nonce, header, bytes)
    }

    fn next_nonce(&mut self) -> Result<[u8; 12], BadRecord> {
        let mut nonce = self.iv;
        for (n, s) in nonce.iter_mut().skip(4).zip(self.sequence.to_be_bytes()) {
            *n ^= s;
        }
        // A nonce is never used twice: long before this the key has been changed.
        self.sequence = self.sequence.checked_add(1).ok_or(BadRecord)?;
        Ok(nonce)
    }
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Key").field("sequence", &self.sequence).finish_non_exhaustive()
    }
}
