//! Signatures of what is sent.
//!
//! `Weir-Signature: t=SECONDS,v1=HEX`, where HEX is HMAC-SHA256 under the webhook's secret (its whole text) over SECONDS, a
//! full stop and the body. A receiver computes it again over the bytes it got, compares in constant time, and refuses times
//! that are more than some minutes off, so that nothing can be sent to it twice.

use std::fmt;

use ring::hmac;

use crate::keys::{KeyError, hex};

/// The header.
pub(crate) const HEADER: &str = "weir-signature";
const PREFIX: &str = "whsec_";

/// A webhook's secret, in the clear.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct SigningSecret(String);

impl SigningSecret {
    /// A new one, of 256 bits.
    pub(crate) fn random() -> Result<Self, KeyError> {
        let mut bits = [0u8; 32];
        getrandom::fill(&mut bits).map_err(|e| KeyError::NoRandomness(e.to_string()))?;
        Ok(SigningSecret(format!("{PREFIX}{}", hex(&bits))))
    }

    /// As it is shown, once.
    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for SigningSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SigningSecret(…)")
    }
}

/// The header's value.
pub(crate) fn signature(secret: &[u8], at: u64, body: &str) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
    let tag = hmac::sign(&key, format!("{at}.{body}").as_bytes());
    format!("t={at},v1={}", hex(tag.as_ref()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_is_what_others_compute() {
        // hmac.new(b"whsec_x", b'1700000000.{"a":1}', "sha256").hexdigest() in Python.
        let expected = "t=1700000000,v1=b3438763ab46d9634b9844c8722818eaf523f803db1327484c6067462a5fd6d1";
        assert_eq!(signature(b"whsec_x", 1_700_000_000, r#"{"a":1}"#), expected);
        let secret = SigningSecret::random().expect("secret");
        assert_eq!((secret.reveal().len(), format!("{secret:?}").as_str()), (6 + 64, "SigningSecret(…)"));
    }
}
