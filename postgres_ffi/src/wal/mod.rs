//! The write-ahead log: pages, records, blocks, images.
//!
//! In reading order: what stands on each WAL page ([`page_header`]), what a record is ([`record`], [`rmgr`]), the page images in it
//! ([`image`]), bytes to records ([`stream`], [`find_end`]), a record cut down to what one page needs ([`trim`]),
//! a record in words ([`describe`]).
//!
//! - Nothing here panics on input or allocates by a length that the input merely claims.
//! - A record is trusted only after its CRC: [`stream`] checks it, [`record::DecodedRecord::decode`] does not.

pub mod page_header;

pub mod record;
pub mod rmgr;

pub mod image;

pub mod stream;
mod stream_input;

pub mod find_end;

pub mod trim;

pub mod describe;

pub mod checks;

pub use image::{Compression, ImageError};
pub use record::{BlockImage, DecodeError, DecodedBlock, DecodedRecord, RecordHeader};
pub use stream::{WalError, WalErrorKind, WalStreamDecoder};
