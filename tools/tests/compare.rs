//! Goal: a comparison finds every kind of difference that matters, and none that does not.
//! Method: small data directories made of real pages and control files, one changed against the other. Whole clusters are compared in
//! the end-to-end tests.

use std::fs;
use std::path::{Path, PathBuf};

use postgres_ffi::control_file::{ControlFile, DbState};
use postgres_ffi::{BLCKSZ, Lsn};
use tempfile::TempDir;
use tools::compare::source::DirectorySource;
use tools::compare::{Options, Report, compare};
use tools::datadir::DataDir;

const CONTROL_15: &[u8] = include_bytes!("../../postgres_ffi/tests/data/control/pg_control.15");
const MAP_15: &[u8] = include_bytes!("../../postgres_ffi/tests/data/relmap/pg_filenode.map.15");

/// A data directory that grows file by file.
struct Cluster {
    folder: TempDir,
}

impl Cluster {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("temporary folder");
        let cluster = Cluster { folder };
        cluster.write("PG_VERSION", b"15\n");
        cluster.write("global/pg_control", &control().encode());
        cluster.write("global/pg_filenode.map", MAP_15);
        fs::create_dir_all(cluster.path("pg_tblspc")).expect("folder");
        cluster.write("base/5/16384", &[page(1), page(2)].concat());
        cluster.write("base/5/16384_vm", &[0; BLCKSZ]);
        cluster.write("pg_xact/0000", &[0x55; BLCKSZ]);
        cluster
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().expect("parent")).expect("folder");
        fs::write(path, bytes).expect("write");
    }

    /// Flips a bit of a file.
    fn damage(&self, name: &str, offset: usize) {
        let mut bytes = fs::read(self.path(name)).expect("read");
        bytes[offset] ^= 1;
        self.write(name, &bytes);
    }

    /// A cleanly stopped cluster of another version.
    fn become_version(&self, major: u32) {
        let file = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join(format!("../postgres_ffi/tests/data/control/pg_control.{major}"));
        let mut control = ControlFile::decode(&fs::read(file).expect("read")).expect("control file");
        control.state = DbState::ShutDown;
        self.write("PG_VERSION", major.to_string().as_bytes());
        self.write("global/pg_control", &control.encode());
    }

    fn dir(&self) -> DataDir {
        DataDir::open(self.folder.path()).expect("open")
    }
}

fn control() -> ControlFile {
    ControlFile::decode(CONTROL_15).expect("control file")
}

/// A heap page with one tuple, all of whose data bytes are `value`.
fn page(value: u8) -> Vec<u8> {
    let mut page = vec![0; BLCKSZ];
    page[4..8].copy_from_slice(&0x0150_0000_u32.to_le_bytes());
    for (at, word) in [(12, 28_u16), (14, 8128), (16, 8192), (18, 0x2004)] {
        page[at..at + 2].copy_from_slice(&word.to_le_bytes());
    }
    let item = 8128_u32 | 1 << 15 | 60 << 17;
    page[24..28].copy_from_slice(&item.to_le_bytes());
    page[8128 + 22] = 24;
    page[8128 + 24..8188].fill(value);
    page
}

/// The first page of a bloom index as PostgreSQL makes it, without an LSN.
fn bloom_metapage() -> Vec<u8> {
    let mut page = vec![0; BLCKSZ];
    for (at, word) in [(12, 8184_u16), (14, 8184), (16, 8184), (18, 0x2004), (8186, 1), (8190, 0xFF83)] {
        page[at..at + 2].copy_from_slice(&word.to_le_bytes());
    }
    for (at, word) in [(24, 0xDBAC_0DED_u32), (32, 136 << 2), (36, 5), (40, 2)] {
        page[at..at + 4].copy_from_slice(&word.to_le_bytes());
    }
    page
}

fn report(on_disk: &Cluster, ours: &Cluster, save_dir: Option<&Path>) -> Report {
    let source = DirectorySource::new(ours.dir()).expect("second directory");
    let options = Options { threads: 2, mismatches_max: 10, save_dir: save_dir.map(Path::to_path_buf) };
    compare(&on_disk.dir(), &source, &options).expect("compare")
}

/// Number of mismatches after `change` to what we have, and the first of them in words.
fn after(change: impl FnOnce(&Cluster)) -> (u64, String) {
    let (on_disk, ours) = (Cluster::new(), Cluster::new());
    change(&ours);
    let report = report(&on_disk, &ours, None);
    let first = report.first_mismatches.first();
    (report.mismatches, first.map(|m| format!("{}: {}: {}", m.kind, m.what, m.detail)).unwrap_or_default())
}

#[test]
fn equal_directories_have_no_mismatch() {
    let report = report(&Cluster::new(), &Cluster::new(), None);
    assert_eq!(report.mismatches, 0, "{report}");
    // 2 heap pages, 1 map page, 1 CLOG page, 1 relation map, 16 checkpoint fields.
    assert_eq!(report.compared, 21, "{report}");
    assert!(report.to_string().ends_with("pages compared: 21, mismatches: 0"), "{report}");
}

#[test]
fn a_changed_byte_is_found_wherever_it_is() {
    for (file, offset, expected) in [
        ("base/5/16384", BLCKSZ + 8150, "main heap: 1663/5/16384 main block      1: differs from byte 8150"),
        ("base/5/16384", 4, "main heap: 1663/5/16384 main block      0: only the lsn differs"),
        ("base/5/16384_vm", 100, "vm: 1663/5/16384 vm block      0: differs from byte 100"),
        ("pg_xact/0000", 77, "pg_xact: segment 0000 page  0: differs from byte 77"),
        ("global/pg_filenode.map", 9, "relation maps: tablespace 1664 database 0: differs from byte 9"),
    ] {
        let (count, first) = after(|ours| ours.damage(file, offset));
        assert_eq!(count, 1, "{file} {first}");
        assert!(first.starts_with(expected), "{first}");
    }
}

#[test]
fn hints_are_no_mismatch() {
    let (count, first) = after(|ours| {
        ours.damage("base/5/16384", 8); // checksum
        ours.damage("base/5/16384", 20); // prune xid
        ours.damage("base/5/16384", 8128 + 21); // XMIN_COMMITTED
        ours.damage("base/5/16384", 100); // the hole
        ours.damage("base/5/16384", 8190); // padding behind the tuple
    });
    assert_eq!(count, 0, "{first}");
}

#[test]
fn what_one_side_lacks_is_a_mismatch() {
    for (change, expected) in [
        (
            (|ours| drop(fs::remove_file(ours.path("base/5/16384")))) as fn(&Cluster),
            "relations: 1663/5/16384 main: in the directory only",
        ),
        (|ours| ours.write("base/5/16999", b""), "relations: 1663/5/16999 main: not in the directory, 0 blocks"),
        (
            |ours| ours.write("base/5/16384", &[page(1), page(2), page(3)].concat()),
            "relation sizes: 1663/5/16384 main: we have 3",
        ),
        (|ours| ours.write("base/5/16384", &page(1)), "main heap: 1663/5/16384 main block      1: differs"),
        (|ours| ours.write("pg_xact/0001", &[1; BLCKSZ]), "pg_xact: segment 0001 page  0: not in the directory"),
        (|ours| ours.write("pg_twophase/000002D4", b"state"), "prepared transactions: xid 724: not in the directory"),
        (
            |ours| drop(fs::remove_file(ours.path("global/pg_filenode.map"))),
            "relation maps: tablespace 1664 database 0: in",
        ),
    ] {
        let (count, first) = after(change);
        assert_eq!(count, 1, "{first}");
        assert!(first.starts_with(expected), "{first}");
    }
}

#[test]
fn blocks_that_no_wal_tells_of_must_be_empty() {
    let (on_disk, ours) = (Cluster::new(), Cluster::new());
    on_disk.write("base/5/16384", &[page(1), page(2), vec![0; BLCKSZ]].concat());
    let first = report(&on_disk, &ours, None);
    assert_eq!(first.mismatches, 0, "{first}");
    assert!(first.to_string().contains("left out: 1 of main new: empty blocks behind"), "{first}");
    on_disk.write("base/5/16384", &[page(1), page(2), page(3)].concat());
    assert_eq!(report(&on_disk, &ours, None).mismatches, 1);
}

#[test]
fn what_is_not_in_the_wal_is_left_out_with_its_reason() {
    let (on_disk, ours) = (Cluster::new(), Cluster::new());
    on_disk.write("base/5/16400", &page(1));
    on_disk.write("base/5/16400_init", b"");
    ours.write("base/5/16400_init", b"");
    on_disk.write("base/5/16384_fsm", &[1; 3 * BLCKSZ]);
    on_disk.write("base/5/t3_16500", &page(1));
    on_disk.write("base/5/pg_internal.init", b"cache");
    on_disk.write("base/5/notes.txt", b"what?");
    let report = report(&on_disk, &ours, None);
    assert_eq!(report.mismatches, 0, "{report}");
    let text = report.to_string();
    for expected in [
        "1 of main unlogged: unlogged: only the init fork",
        "3 of fsm: the free space map is not in the WAL",
        "1 of other files: temporary relation",
        "1 of other files: relation cache",
        "1 of other files: unknown name",
        "notes.txt",
    ] {
        assert!(text.contains(expected), "{expected}\n{text}");
    }
}

/// Maps of a copied database: CREATE DATABASE logs them without their bits. Of a database of initdb, or with a bit too many, it is a mismatch.
#[test]
fn only_a_copied_database_may_lack_visibility_bits() {
    let map = |bits: u8| {
        let mut page = vec![0; BLCKSZ];
        page[4] = 1;
        for (at, word) in [(12, 24_u16), (14, 8192), (16, 8192), (18, 0x2004)] {
            page[at..at + 2].copy_from_slice(&word.to_le_bytes());
        }
        page[24] = bits;
        page
    };
    let mismatches = |db: u32, on_disk_bits, our_bits| {
        let (on_disk, ours) = (Cluster::new(), Cluster::new());
        for (cluster, bits) in [(&on_disk, on_disk_bits), (&ours, our_bits)] {
            cluster.write(&format!("base/{db}/2600"), &page(1));
            cluster.write(&format!("base/{db}/2600_vm"), &map(bits));
        }
        report(&on_disk, &ours, None).mismatches
    };
    assert_eq!(mismatches(16_500, 3, 0), 0);
    assert_eq!(mismatches(16_500, 0, 3), 1);
    assert_eq!(mismatches(5, 3, 0), 1);
}

/// contrib/bloom from 16 on does not log the page. Zeroes or nothing of ours, an existing fork, block 0, no LSN, that page: else it counts.
#[test]
fn only_the_unlogged_meta_page_of_bloom_may_be_missing_in_an_init_fork() {
    const EXCEPTION: &str = "left out: 1 of init: meta page of an unlogged bloom index";
    let report_of = |major: u32, disk_init: &[u8], our_init: Option<&[u8]>| {
        let (on_disk, ours) = (Cluster::new(), Cluster::new());
        for (cluster, init) in [(&on_disk, Some(disk_init)), (&ours, our_init)] {
            cluster.become_version(major);
            cluster.write("base/5/16400", b"");
            if let Some(init) = init {
                cluster.write("base/5/16400_init", init);
            }
        }
        report(&on_disk, &ours, None)
    };
    for our_init in [&[][..], &[0; BLCKSZ]] {
        for major in [16, 17, 18] {
            let report = report_of(major, &bloom_metapage(), Some(our_init));
            assert_eq!(report.mismatches, 0, "{report}");
            assert!(report.to_string().contains(EXCEPTION), "{report}");
            assert!(report.to_string().contains("note: 1663/5/16400 init block 0: meta page of"), "{report}");
        }
        assert_eq!(report_of(15, &bloom_metapage(), Some(our_init)).mismatches, 1);
        for byte in [4, 24, 28, 8186, 8190] {
            let mut other = bloom_metapage();
            other[byte] ^= 2;
            assert_eq!(report_of(18, &other, Some(our_init)).mismatches, 1, "byte {byte}");
        }
        let second_block = [vec![0; BLCKSZ], bloom_metapage()].concat();
        assert_eq!(report_of(18, &second_block, Some(our_init)).mismatches, 1);
    }
    assert_eq!(report_of(18, &bloom_metapage(), Some(&page(1))).mismatches, 1);
    // That the fork was made is logged.
    assert_eq!(report_of(18, &bloom_metapage(), None).mismatches, 1);
    // The other way round.
    assert_eq!(report_of(18, &[0; BLCKSZ], Some(&bloom_metapage())).mismatches, 1);
}

/// Up to 16 a file's name has the lower half of the transaction id; the upper one is the checkpoint's, or one less.
#[test]
fn prepared_transactions_are_named_by_their_full_ids() {
    let mut control = control();
    control.checkpoint_copy[24..32].copy_from_slice(&0x5_0000_1000_u64.to_le_bytes());
    let cluster = Cluster::new();
    cluster.write("global/pg_control", &control.encode());
    cluster.write("pg_twophase/000002D4", b"this epoch");
    cluster.write("pg_twophase/FFFFFF00", b"the one before");
    let files = cluster.dir().two_phase_files().expect("files");
    assert_eq!(files.into_keys().collect::<Vec<_>>(), [0x4_FFFF_FF00, 0x5_0000_02D4]);
}

/// Nothing of the shutdown checkpoint may differ, but for padding.
#[test]
fn a_changed_checkpoint_field_is_found() {
    let mismatches = |offset: usize| {
        let (on_disk, ours) = (Cluster::new(), Cluster::new());
        let mut control = control();
        control.checkpoint_copy[offset] ^= 1;
        ours.write("global/pg_control", &control.encode());
        report(&on_disk, &ours, None).to_string()
    };
    for (offset, field) in
        [(0, "redo position"), (25, "next xid"), (32, "next oid"), (64, "time"), (80, "oldest active")]
    {
        let report = mismatches(offset);
        assert!(report.contains(&format!("mismatch: checkpoint fields: {field}")), "{report}");
        assert!(report.ends_with("mismatches: 1"), "{report}");
    }
    for padding in [17, 20, 60, 84] {
        assert!(mismatches(padding).ends_with("mismatches: 0"), "{padding}");
    }
}

/// At a start the server writes the next offset at the next multixact's place, without WAL; anything else there counts.
#[test]
fn the_next_multixacts_offset_may_stand_on_disk_only() {
    let mut control = control();
    control.checkpoint_copy[36..40].copy_from_slice(&9_u32.to_le_bytes());
    control.checkpoint_copy[40..44].copy_from_slice(&77_u32.to_le_bytes());
    let mismatches = |at: usize, value: u32| {
        let (on_disk, ours) = (Cluster::new(), Cluster::new());
        let mut offsets = vec![0; BLCKSZ];
        for cluster in [&on_disk, &ours] {
            cluster.write("global/pg_control", &control.encode());
            cluster.write("pg_multixact/offsets/0000", &offsets);
        }
        offsets[at..at + 4].copy_from_slice(&value.to_le_bytes());
        on_disk.write("pg_multixact/offsets/0000", &offsets);
        report(&on_disk, &ours, None).mismatches
    };
    assert_eq!(mismatches(36, 77), 0);
    assert_eq!(mismatches(36, 78), 1);
    assert_eq!(mismatches(40, 77), 1);
}

#[test]
fn both_versions_of_a_page_that_differs_are_saved() {
    let (on_disk, ours) = (Cluster::new(), Cluster::new());
    ours.damage("base/5/16384", 8160);
    let folder = tempfile::tempdir().expect("temporary folder");
    report(&on_disk, &ours, Some(folder.path()));
    for name in ["1663_5_16384_main_0.ours", "1663_5_16384_main_0.disk"] {
        let raw = fs::read(folder.path().join(format!("{name}.bin"))).expect("raw page");
        assert_eq!(raw.len(), BLCKSZ);
        let text = fs::read_to_string(folder.path().join(format!("{name}.txt"))).expect("decoded page");
        assert!(text.starts_with("heap page, fork main, block 0"), "{text}");
    }
}

#[test]
fn a_cluster_that_was_not_stopped_cleanly_is_refused() {
    let (on_disk, ours) = (Cluster::new(), Cluster::new());
    let mut control = control();
    control.state = DbState::InProduction;
    on_disk.write("global/pg_control", &control.encode());
    let source = DirectorySource::new(ours.dir()).expect("second directory");
    let options = Options { threads: 1, mismatches_max: 1, save_dir: None };
    let refused = compare(&on_disk.dir(), &source, &options).expect_err("not stopped");
    assert!(refused.to_string().contains("not stopped cleanly"), "{refused}");
    assert!(DirectorySource::new(on_disk.dir()).is_err());
}

#[test]
fn damaged_directories_are_refused() {
    let open = |change: &dyn Fn(&Cluster)| {
        let cluster = Cluster::new();
        change(&cluster);
        DataDir::open(cluster.folder.path()).map(drop).expect_err("damaged").to_string()
    };
    let error = open(&|cluster| cluster.write("base/5/16384", &[0; 100]));
    assert!(error.contains("impossible length"), "{error}");
    let error = open(&|cluster| cluster.write("PG_VERSION", b"13"));
    assert!(error.contains("unsupported PostgreSQL major version"), "{error}");
    let error = open(&|cluster| cluster.damage("global/pg_control", 30));
    assert!(error.contains("decode"), "{error}");
    let error = open(&|cluster| cluster.write("base/5/16384.1", &page(1)));
    assert!(error.contains("later segment is not empty"), "{error}");
    let end = Cluster::new().dir().checkpoint_end_lsn().expect("end");
    assert_eq!(end, Lsn::new(0x0175_29B0 + 120));
}
