//! The `tls-server-end-point` channel binding of SCRAM: a hash of the server's certificate.
//!
//! RFC 5929, section 4.1: the hash is that of the certificate's signature algorithm, SHA-256 where that is MD5 or SHA-1.
//! `None` where the algorithm has no single hash (Ed25519, PSS): the login then goes on without binding.

use ring::digest;

/// Signature algorithms by the DER content of their object identifier.
const ALGORITHMS: [(&[u8], &digest::Algorithm); 9] = [
    // 1.2.840.113549.1.1.{4,5,11,12,13}: RSA with MD5, SHA-1, SHA-256, SHA-384, SHA-512
    (&[0x2A, 0x86, 0x48, 0x86, 0xF7, 0x0D, 0x01, 0x01, 0x04], &digest::SHA256),
    (&[0x2A, 0x86, 0x48, 0x86, 0xF7, 0x0D, 0x01, 0x01, 0x05], &digest::SHA256),
    (&[0x2A, 0x86, 0x48, 0x86, 0xF7, 0x0D, 0x01, 0x01, 0x0B], &digest::SHA256),
    (&[0x2A, 0x86, 0x48, 0x86, 0xF7, 0x0D, 0x01, 0x01, 0x0C], &digest::SHA384),
    (&[0x2A, 0x86, 0x48, 0x86, 0xF7, 0x0D, 0x01, 0x01, 0x0D], &digest::SHA512),
    // 1.2.840.10045.4.1, 1.2.840.10045.4.3.{2,3,4}: ECDSA with SHA-1, SHA-256, SHA-384, SHA-512
    (&[0x2A, 0x86, 0x48, 0xCE, 0x3D, 0x04, 0x01], &digest::SHA256),
    (&[0x2A, 0x86, 0x48, 0xCE, 0x3D, 0x04, 0x03, 0x02], &digest::SHA256),
    (&[0x2A, 0x86, 0x48, 0xCE, 0x3D, 0x04, 0x03, 0x03], &digest::SHA384),
    (&[0x2A, 0x86, 0x48, 0xCE, 0x3D, 0x04, 0x03, 0x04], &digest::SHA512),
];

const DER_OBJECT_IDENTIFIER: u8 = 0x06;
const DER_SEQUENCE: u8 = 0x30;

/// The binding data for a certificate in DER.
pub(super) fn tls_server_end_point(certificate: &[u8]) -> Option<Vec<u8>> {
    // Certificate ::= SEQUENCE { tbsCertificate SEQUENCE, signatureAlgorithm SEQUENCE { OBJECT IDENTIFIER, ... }, ... }
    let (fields, _) = element(certificate, DER_SEQUENCE)?;
    let (_, after_tbs) = element(fields, DER_SEQUENCE)?;
    let (signature_algorithm, _) = element(after_tbs, DER_SEQUENCE)?;
    let (identifier, _) = element(signature_algorithm, DER_OBJECT_IDENTIFIER)?;
    let (_, hash) = ALGORITHMS.iter().find(|(known, _)| *known == identifier)?;
    Some(digest::digest(hash, certificate).as_ref().to_vec())
}

/// Content of the DER element that `bytes` begin with, if it has this tag, and what follows it.
fn element(bytes: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (found, rest) = bytes.split_first()?;
    let (first, rest) = rest.split_first()?;
    if *found != tag {
        return None;
    }
    let (length, rest) = match first {
        0..=0x7F => (usize::from(*first), rest),
        0x81..=0x84 => {
            let (digits, rest) = rest.split_at_checked(usize::from(first & 0x7F))?;
            (digits.iter().fold(0, |length, digit| length << 8 | usize::from(*digit)), rest)
        }
        _ => return None,
    };
    rest.split_at_checked(length)
}

#[cfg(test)]
mod tests {
    //! Goal: hostile certificates end in `None`. The right value is tested against real servers, which refuse a wrong one.

    use super::*;

    #[test]
    fn every_truncation_and_every_length_is_survived() {
        let mut certificate = vec![0x30, 0x81, 0x10, 0x30, 0x01, 0x00, 0x30, 0x0B, 0x06, 0x09];
        certificate.extend([0x2A, 0x86, 0x48, 0x86, 0xF7, 0x0D, 0x01, 0x01, 0x0B]);
        assert_eq!(tls_server_end_point(&certificate).map(|hash| hash.len()), Some(32));
        for length in 0..certificate.len() {
            assert_eq!(tls_server_end_point(&certificate[..length]), None);
        }
        for index in 0..certificate.len() {
            for value in 0..=255 {
                let mut changed = certificate.clone();
                changed[index] = value;
                let _ = tls_server_end_point(&changed);
            }
        }
    }
}
