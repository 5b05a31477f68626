//! What the fuzz targets of redo share: how an input is changed.
//!
//! libFuzzer changes bytes anywhere. Of a case of redo ([`RedoCase`]) nearly all bytes are tuples that nobody looks at, and a byte put in or taken out makes nonsense of
//! all that follows: hardly any such input comes as far as redo. So the change is made where redo looks, by libFuzzer's own mutations, and the lengths are set right:
//!
//! - [`record`]: the bodies in a record, which may grow and shrink;
//! - [`page`]: header, line pointers, tuples' heads and the special space of a page;
//! - [`mutate`]: chooses among them, and [`cross_over`] puts one case's record to another case's page.
//!
//! One input of eight is changed anywhere, so that nothing is out of reach.
#![forbid(unsafe_code)]

mod page;
mod record;

use bytes::Bytes;
use libfuzzer_sys::fuzzer_mutate;
use postgres_ffi::redo::case::RedoCase;
use postgres_ffi::{Lsn, PgVersion};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

/// The fuzz target of a resource manager's redo: what must hold is in `postgres_ffi::redo::case::fuzz`.
#[macro_export]
macro_rules! redo_target {
    ($rmid:expr) => {
        libfuzzer_sys::fuzz_target!(|data: &[u8]| postgres_ffi::redo::case::fuzz($rmid, data));
        libfuzzer_sys::fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
            $crate::mutate(data, size, max_size, seed)
        });
        libfuzzer_sys::fuzz_crossover!(|data1: &[u8], data2: &[u8], out: &mut [u8], seed: u32| {
            $crate::cross_over(data1, data2, out, seed)
        });
    };
}

/// Changes the case in the first `size` bytes of `data`; its new length, at most `max_size`.
pub fn mutate(data: &mut [u8], size: usize, max_size: usize, seed: u32) -> usize {
    let mut numbers = SmallRng::seed_from_u64(u64::from(seed));
    let case = RedoCase::take(&mut Bytes::copy_from_slice(&data[..size]));
    let Ok(mut case) = case else { return fuzzer_mutate(data, size, max_size) };
    if numbers.random_ratio(1, 8) {
        return fuzzer_mutate(data, size, max_size);
    }
    for _ in 0..numbers.random_range(1..=3) {
        match numbers.random_range(0..16) {
            0 => case.facts.version = PgVersion::ALL[numbers.random_range(0..PgVersion::ALL.len())],
            1 => case.facts.hint_bits_logged ^= true,
            2 => record::mutate_operation(&mut case.record, &mut numbers),
            3 => record::mutate_headers(&mut case.record, &mut numbers),
            4..10 => record::mutate_body(&mut case, &mut numbers),
            _ => page::mutate(case.page.get_or_insert_with(|| Box::new(postgres_ffi::page::ZERO_PAGE)), &mut numbers),
        }
    }
    make_old(&mut case, &mut numbers);
    put(&case, data, max_size).unwrap_or(size.min(max_size))
}

/// Puts the record of the case in `data1` to the page of the case in `data2`, both as the version of either; the length of what is in `out`, 0 if they are no cases.
pub fn cross_over(data1: &[u8], data2: &[u8], out: &mut [u8], seed: u32) -> usize {
    let mut numbers = SmallRng::seed_from_u64(u64::from(seed));
    let [one, other] = [data1, data2].map(|data| RedoCase::take(&mut Bytes::copy_from_slice(data)));
    let (Ok(mut case), Ok(other)) = (one, other) else { return 0 };
    case.page = other.page;
    if numbers.random() {
        case.facts = other.facts;
    }
    make_old(&mut case, &mut numbers);
    let len = out.len();
    put(&case, out, len).unwrap_or(0)
}

/// Nearly always the page is from before the record: else there is nothing to do.
fn make_old(case: &mut RedoCase, numbers: &mut SmallRng) {
    if let Some(page) = &mut case.page
        && numbers.random_ratio(15, 16)
    {
        postgres_ffi::page::set_page_lsn(page, Lsn::ZERO);
    }
    if case.end_lsn == Lsn::ZERO {
        case.end_lsn = Lsn::new(1);
    }
}

/// Writes the case's bytes; `None` if they are more than `max_size`.
fn put(case: &RedoCase, out: &mut [u8], max_size: usize) -> Option<usize> {
    let mut bytes = Vec::new();
    case.encode(&mut bytes);
    out.get_mut(..max_size)?.get_mut(..bytes.len())?.copy_from_slice(&bytes);
    Some(bytes.len())
}

/// Changes `bytes` by libFuzzer's mutations, to a length of at most `len_max`.
fn mutate_bytes(bytes: &mut Vec<u8>, len_max: usize) {
    let len = bytes.len().min(len_max);
    bytes.resize(len_max, 0);
    let new_len = fuzzer_mutate(bytes, len, len_max);
    bytes.truncate(new_len);
}

/// Changes `bytes` in place; where libFuzzer makes them shorter, the end stays.
fn mutate_in_place(bytes: &mut [u8]) {
    if bytes.is_empty() {
        return;
    }
    let mut changed = bytes.to_vec();
    mutate_bytes(&mut changed, bytes.len());
    bytes[..changed.len()].copy_from_slice(&changed);
}
