//! What the fuzz targets of redo share: how an input is changed.
//!
//! libFuzzer changes bytes anywhere; hardly any such input comes as far as redo. Here it is told where: see [`RedoCase::change`]. Besides, a case gets another version, or
//! the page of another case, and one input of eight is changed anywhere after all, so that nothing is out of reach.
#![forbid(unsafe_code)]

use bytes::Bytes;
use libfuzzer_sys::fuzzer_mutate;
use postgres_ffi::page::set_page_lsn;
use postgres_ffi::redo::case::{Changes, RedoCase};
use postgres_ffi::wal::record::RECORD_HEADER_LEN;
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

/// Chooses by a seed, changes bytes as libFuzzer does.
struct Mutations(SmallRng);

impl Mutations {
    fn of_seed(seed: u32) -> Self {
        Mutations(SmallRng::seed_from_u64(seed.into()))
    }
}

impl Changes for Mutations {
    fn below(&mut self, end: usize) -> usize {
        self.0.random_range(0..end)
    }

    fn change(&mut self, bytes: &mut Vec<u8>, len_max: usize) {
        if len_max == 0 {
            return bytes.clear();
        }
        let len = bytes.len().min(len_max);
        bytes.resize(len_max, 0);
        let new_len = fuzzer_mutate(bytes, len, len_max);
        bytes.truncate(new_len);
    }
}

/// Changes the case in the first `size` bytes of `data`; its new length, at most `max_size`.
pub fn mutate(data: &mut [u8], size: usize, max_size: usize, seed: u32) -> usize {
    let mut mutations = Mutations::of_seed(seed);
    let case = RedoCase::take(&mut Bytes::copy_from_slice(&data[..size]));
    let Some(mut case) = case.ok().filter(|_| mutations.below(8) != 0) else {
        return fuzzer_mutate(data, size, max_size);
    };
    match mutations.below(16) {
        0 => case.facts.version = PgVersion::ALL[mutations.below(PgVersion::ALL.len())],
        1 => case.facts.hint_bits_logged ^= true,
        2 => change_headers(&mut case, &mut mutations),
        _ => case.change(&mut mutations),
    }
    make_old(&mut case, &mut mutations);
    put(&case, data, max_size).unwrap_or(size.min(max_size))
}

/// What stands in front of the bodies: flags of blocks, heads of images, block numbers, lengths.
fn change_headers(case: &mut RedoCase, mutations: &mut Mutations) {
    let mut raw = case.record.to_vec();
    let mut headers = raw.split_off(RECORD_HEADER_LEN.min(raw.len()));
    let bodies = headers.split_off(mutations.below(80).min(headers.len()));
    let len = headers.len();
    mutations.change(&mut headers, len);
    raw.extend(headers.into_iter().chain(bodies));
    case.record = raw.into();
}

/// Puts the record of the case in `data1` to the page of the case in `data2`, as the version of either; the length of what is in `out`, 0 if they are no cases.
pub fn cross_over(data1: &[u8], data2: &[u8], out: &mut [u8], seed: u32) -> usize {
    let mut mutations = Mutations::of_seed(seed);
    let [one, other] = [data1, data2].map(|data| RedoCase::take(&mut Bytes::copy_from_slice(data)));
    let (Ok(mut case), Ok(other)) = (one, other) else { return 0 };
    case.page = other.page;
    if mutations.below(2) == 0 {
        case.facts = other.facts;
    }
    make_old(&mut case, &mut mutations);
    let len = out.len();
    put(&case, out, len).unwrap_or(0)
}

/// Nearly always the page is from before the record: else there is nothing to do.
fn make_old(case: &mut RedoCase, mutations: &mut Mutations) {
    if let Some(page) = &mut case.page
        && mutations.below(16) != 0
    {
        set_page_lsn(page, Lsn::ZERO);
    }
    case.end_lsn = case.end_lsn.max(Lsn::new(1));
}

/// Writes the case's bytes; `None` if they are more than `max_size`.
fn put(case: &RedoCase, out: &mut [u8], max_size: usize) -> Option<usize> {
    let mut bytes = Vec::new();
    case.encode(&mut bytes);
    out.get_mut(..max_size)?.get_mut(..bytes.len())?.copy_from_slice(&bytes);
    Some(bytes.len())
}
