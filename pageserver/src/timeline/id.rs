//! 128-bit names of tenants and timelines.
//!
//! - A *tenant* is one PostgreSQL cluster (one system identifier) with its tree of timelines.
//! - A *timeline* is one line of that cluster's history. Not PostgreSQL's timeline id, which counts within one cluster.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

macro_rules! id_128 {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name([u8; 16]);

        impl $name {
            /// A new random id.
            pub fn generate() -> Self {
                $name(rand::random())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = IdParseError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                parse_hex(text).map($name)
            }
        }

        impl TryFrom<String> for $name {
            type Error = IdParseError;

            fn try_from(text: String) -> Result<Self, Self::Error> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.to_string()
            }
        }
    };
}

id_128!(
    /// Names one cluster.
    TenantId
);
id_128!(
    /// Names one line of history.
    TimelineId
);

/// The text is not a 128-bit id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not an id, expected 32 hexadecimal digits. value=`{value}`")]
pub struct IdParseError {
    value: String,
}

fn parse_hex(text: &str) -> Result<[u8; 16], IdParseError> {
    let refused = || IdParseError { value: text.chars().take(64).collect() };
    let digits = text.as_bytes();
    if digits.len() != 32 {
        return Err(refused());
    }
    let mut id = [0; 16];
    for (byte, pair) in id.iter_mut().zip(digits.chunks_exact(2)) {
        let digit = |c: u8| char::from(c).to_digit(16).and_then(|value| u8::try_from(value).ok());
        let (Some(high), Some(low)) = (digit(pair[0]), digit(pair[1])) else { return Err(refused()) };
        *byte = high << 4 | low;
    }
    Ok(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_and_parses_32_hex_digits() {
        let id = TimelineId::generate();
        assert_eq!(id.to_string().len(), 32);
        assert_eq!(id.to_string().parse(), Ok(id));
        for bad in ["", "0", &"g".repeat(32), &"0".repeat(33), "é000000000000000000000000000000"] {
            assert!(bad.parse::<TimelineId>().is_err(), "{bad}");
        }
    }
}
