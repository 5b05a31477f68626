//! Encoders for the libpq messages that a server sends. Each appends one whole message to a buffer.
//!
//! PG 15: doc/src/sgml/protocol.sgml, "Message Formats"; lengths count themselves, not the type byte.

use super::error::PgError;

/// Severity of an ErrorResponse.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// The command failed.
    Error,
    /// The connection ends.
    Fatal,
}

/// How a column's values are typed on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ColumnType {
    /// `text`
    Text,
    /// `int8`
    Int8,
    /// `bool`
    Bool,
    /// `bytea`
    Bytea,
}

impl ColumnType {
    /// Type OID. PG 15: src/include/catalog/pg_type.dat.
    pub const fn oid(self) -> u32 {
        match self {
            Self::Bool => 16,
            Self::Bytea => 17,
            Self::Int8 => 20,
            Self::Text => 25,
        }
    }

    const fn type_len(self) -> i16 {
        match self {
            Self::Bool => 1,
            Self::Int8 => 8,
            Self::Text | Self::Bytea => -1,
        }
    }
}

/// A column of a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Column {
    /// Its name.
    pub name: &'static str,
    /// Its type.
    pub column_type: ColumnType,
}

impl Column {
    /// A column of type `text`.
    pub const fn text(name: &'static str) -> Self {
        Column { name, column_type: ColumnType::Text }
    }

    /// A column of type `int8`.
    pub const fn int8(name: &'static str) -> Self {
        Column { name, column_type: ColumnType::Int8 }
    }

    /// A column of type `bool`.
    pub const fn bool(name: &'static str) -> Self {
        Column { name, column_type: ColumnType::Bool }
    }

    /// A column of type `bytea`.
    pub const fn bytea(name: &'static str) -> Self {
        Column { name, column_type: ColumnType::Bytea }
    }
}

/// Text or binary, as Bind asks for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// What a person reads.
    Text,
    /// What a program reads.
    Binary,
}

/// A value of a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// NULL
    Null,
    /// `text`
    Text(String),
    /// `int8`
    Int(i64),
    /// `bool`
    Bool(bool),
    /// `bytea`
    Bytes(bytes::Bytes),
}

impl Value {
    /// `value` as text by its `Display`, NULL for `None`.
    pub fn display<T: std::fmt::Display>(value: Option<T>) -> Self {
        value.map_or(Value::Null, |value| Value::Text(value.to_string()))
    }

    /// A count; above `i64::MAX` it saturates.
    pub fn count(value: u64) -> Self {
        Value::Int(i64::try_from(value).unwrap_or(i64::MAX))
    }

    fn append(&self, format: Format, out: &mut Vec<u8>) {
        match (self, format) {
            (Value::Null, _) => {}
            (Value::Text(text), _) => out.extend_from_slice(text.as_bytes()),
            (Value::Int(value), Format::Text) => out.extend_from_slice(value.to_string().as_bytes()),
            (Value::Int(value), Format::Binary) => out.extend_from_slice(&value.to_be_bytes()),
            (Value::Bool(value), Format::Text) => out.push(if *value { b't' } else { b'f' }),
            (Value::Bool(value), Format::Binary) => out.push(u8::from(*value)),
            (Value::Bytes(bytes), Format::Text) => append_hex(bytes, out),
            (Value::Bytes(bytes), Format::Binary) => out.extend_from_slice(bytes),
        }
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Value::Text(text.to_owned())
    }
}

/// `\x` and two digits per byte. PG 15: src/backend/utils/adt/varlena.c, byteaout.
fn append_hex(bytes: &[u8], out: &mut Vec<u8>) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    out.reserve(2 + 2 * bytes.len());
    out.extend_from_slice(b"\\x");
    for byte in bytes {
        out.push(DIGITS[usize::from(byte >> 4)]);
        out.push(DIGITS[usize::from(byte & 15)]);
    }
}

/// Appends a message of type `tag` whose payload is what `body` appends.
pub fn message(out: &mut Vec<u8>, tag: u8, body: impl FnOnce(&mut Vec<u8>)) {
    out.push(tag);
    let length_at = out.len();
    out.extend_from_slice(&[0; 4]);
    body(out);
    // Nothing that we send comes near 2 GiB: rows hold a page or a line of text.
    let length = u32::try_from(out.len() - length_at).unwrap_or(u32::MAX);
    assert!(length <= 0x7FFF_FFFF);
    out[length_at..length_at + 4].copy_from_slice(&length.to_be_bytes());
}

/// Text as libpq has it: a NUL ends it, so one within it becomes a space.
pub fn put_cstring(out: &mut Vec<u8>, text: &str) {
    out.extend(text.bytes().map(|byte| if byte == 0 { b' ' } else { byte }));
    out.push(0);
}

fn put_i16(out: &mut Vec<u8>, value: usize) {
    let value = i16::try_from(value).unwrap_or(i16::MAX);
    out.extend_from_slice(&value.to_be_bytes());
}

/// AuthenticationOk.
pub fn authentication_ok(out: &mut Vec<u8>) {
    message(out, b'R', |out| out.extend_from_slice(&0_u32.to_be_bytes()));
}

/// ParameterStatus.
pub fn parameter_status(out: &mut Vec<u8>, name: &str, value: &str) {
    message(out, b'S', |out| {
        put_cstring(out, name);
        put_cstring(out, value);
    });
}

/// BackendKeyData: what a CancelRequest must repeat.
pub fn backend_key_data(out: &mut Vec<u8>, connection_id: u32, secret: &[u8]) {
    message(out, b'K', |out| {
        out.extend_from_slice(&connection_id.to_be_bytes());
        out.extend_from_slice(secret);
    });
}

/// NegotiateProtocolVersion: the version that we speak instead, and the options that we do not know.
/// PG 18: src/backend/tcop/backend_startup.c, SendNegotiateProtocolVersion.
pub fn negotiate_protocol_version(out: &mut Vec<u8>, version: u32, unknown_options: &[String]) {
    message(out, b'v', |out| {
        out.extend_from_slice(&version.to_be_bytes());
        out.extend_from_slice(&u32::try_from(unknown_options.len()).unwrap_or(u32::MAX).to_be_bytes());
        for option in unknown_options {
            put_cstring(out, option);
        }
    });
}

/// ReadyForQuery. `in_transaction`: the client has said BEGIN and not yet how it ends.
pub fn ready_for_query(out: &mut Vec<u8>, in_transaction: bool) {
    message(out, b'Z', |out| out.push(if in_transaction { b'T' } else { b'I' }));
}

/// ErrorResponse.
pub fn error_response(out: &mut Vec<u8>, severity: Severity, error: &PgError) {
    let severity = match severity {
        Severity::Error => "ERROR",
        Severity::Fatal => "FATAL",
    };
    message(out, b'E', |out| put_fields(out, severity, error.sqlstate, &error.message, error.hint.as_deref()));
}

/// NoticeResponse with severity NOTICE.
pub fn notice(out: &mut Vec<u8>, text: &str) {
    message(out, b'N', |out| put_fields(out, "NOTICE", "00000", text, None));
}

fn put_fields(out: &mut Vec<u8>, severity: &str, sqlstate: &str, text: &str, hint: Option<&str>) {
    // S may be translated in PostgreSQL, V never is; clients look for V first.
    let fields =
        [(b'S', Some(severity)), (b'V', Some(severity)), (b'C', Some(sqlstate)), (b'M', Some(text)), (b'H', hint)];
    for (field, value) in fields {
        if let Some(value) = value {
            out.push(field);
            put_cstring(out, value);
        }
    }
    out.push(0);
}

/// CommandComplete.
pub fn command_complete(out: &mut Vec<u8>, tag: &str) {
    message(out, b'C', |out| put_cstring(out, tag));
}

/// A message that is its type alone: ParseComplete, BindComplete, CloseComplete, NoData, PortalSuspended, EmptyQueryResponse, CopyDone.
pub fn bare(out: &mut Vec<u8>, tag: u8) {
    message(out, tag, |_| {});
}

/// CopyBothResponse, binary like the reference system's: format 0 and no columns.
pub fn copy_both_response(out: &mut Vec<u8>) {
    message(out, b'W', |out| out.extend_from_slice(&[0, 0, 0]));
}

/// CopyOutResponse, as PostgreSQL begins a base backup with: format 0 and no columns.
pub fn copy_out_response(out: &mut Vec<u8>) {
    message(out, b'H', |out| out.extend_from_slice(&[0, 0, 0]));
}

/// ParameterDescription for a statement without parameters.
pub fn no_parameters(out: &mut Vec<u8>) {
    message(out, b't', |out| put_i16(out, 0));
}

/// RowDescription. `format_of` gives each column's format.
pub fn row_description(out: &mut Vec<u8>, columns: &[Column], format_of: impl Fn(usize) -> Format) {
    message(out, b'T', |out| {
        put_i16(out, columns.len());
        for (i, column) in columns.iter().enumerate() {
            put_cstring(out, column.name);
            out.extend_from_slice(&[0; 6]); // No table, no attribute number.
            out.extend_from_slice(&column.column_type.oid().to_be_bytes());
            out.extend_from_slice(&column.column_type.type_len().to_be_bytes());
            out.extend_from_slice(&(-1_i32).to_be_bytes()); // No type modifier.
            out.extend_from_slice(&i16::from(format_of(i) == Format::Binary).to_be_bytes());
        }
    });
}

/// DataRow.
pub fn data_row(out: &mut Vec<u8>, values: &[Value], format_of: impl Fn(usize) -> Format) {
    message(out, b'D', |out| {
        put_i16(out, values.len());
        for (i, value) in values.iter().enumerate() {
            let length_at = out.len();
            out.extend_from_slice(&(-1_i32).to_be_bytes());
            if *value != Value::Null {
                value.append(format_of(i), out);
                let length = i32::try_from(out.len() - length_at - 4).unwrap_or(i32::MAX);
                out[length_at..length_at + 4].copy_from_slice(&length.to_be_bytes());
            }
        }
    });
}

#[cfg(test)]
mod tests {
    //! Goal: bytes as PostgreSQL's protocol documentation has them. Method: golden bytes, written by hand.
    use super::*;

    fn check(encode: impl FnOnce(&mut Vec<u8>), expect: &[u8]) {
        let mut out = vec![0xAA]; // What is there already stays.
        encode(&mut out);
        assert_eq!(out[0], 0xAA);
        assert_eq!(out[1..].escape_ascii().to_string(), expect.escape_ascii().to_string());
    }

    #[test]
    fn golden_messages() {
        check(authentication_ok, b"R\0\0\0\x08\0\0\0\0");
        check(|out| ready_for_query(out, false), b"Z\0\0\0\x05I");
        check(|out| ready_for_query(out, true), b"Z\0\0\0\x05T");
        check(|out| parameter_status(out, "a", "b"), b"S\0\0\0\x08a\0b\0");
        check(|out| backend_key_data(out, 7, &[1, 2, 3, 4]), b"K\0\0\0\x0c\0\0\0\x07\x01\x02\x03\x04");
        check(
            |out| negotiate_protocol_version(out, 0x0003_0000, &["_pq_.x".into()]),
            b"v\0\0\0\x13\0\x03\0\0\0\0\0\x01_pq_.x\0",
        );
        check(copy_both_response, b"W\0\0\0\x07\0\0\0");
        check(copy_out_response, b"H\0\0\0\x07\0\0\0");
        check(|out| command_complete(out, "SELECT 1"), b"C\0\0\0\x0dSELECT 1\0");
        check(|out| bare(out, b'1'), b"1\0\0\0\x04");
        check(no_parameters, b"t\0\0\0\x06\0\0");
        check(
            |out| error_response(out, Severity::Fatal, &PgError::new("53300", "no\0").with_hint("h")),
            b"E\0\0\0\x22SFATAL\0VFATAL\0C53300\0Mno \0Hh\0\0",
        );
        check(|out| notice(out, "hi"), b"N\0\0\0\x20SNOTICE\0VNOTICE\0C00000\0Mhi\0\0");
    }

    #[test]
    fn golden_rows() {
        let columns = [Column::text("n"), Column::int8("v")];
        check(
            |out| row_description(out, &columns, |_| Format::Text),
            b"T\0\0\0\x2e\0\x02n\0\0\0\0\0\0\0\0\0\0\x19\xff\xff\xff\xff\xff\xff\0\0v\0\0\0\0\0\0\0\0\0\0\x14\0\x08\xff\xff\xff\xff\0\0",
        );
        let values =
            [Value::from("x"), Value::Int(-2), Value::Null, Value::Bool(true), Value::Bytes(vec![0xAB, 1].into())];
        check(
            |out| data_row(out, &values, |_| Format::Text),
            b"D\0\0\0\x24\0\x05\0\0\0\x01x\0\0\0\x02-2\xff\xff\xff\xff\0\0\0\x01t\0\0\0\x06\\xab01",
        );
        check(
            |out| data_row(out, &values, |_| Format::Binary),
            b"D\0\0\0\x26\0\x05\0\0\0\x01x\0\0\0\x08\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff\xff\0\0\0\x01\x01\0\0\0\x02\xab\x01",
        );
    }
}
