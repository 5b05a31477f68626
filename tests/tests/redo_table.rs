//! The table of operations in `docs/redo.md`: every operation of every version is in it, and none stands at zero without a reason.

use postgres_ffi::PgVersion;
use tests::prove_redo::table;

#[test]
fn every_operation_is_proven_by_images() {
    let document = include_str!("../../docs/redo.md");
    let counts = table::parse(document).expect("the table, as prove-redo writes it");
    for version in PgVersion::ALL {
        assert!(table::operations(version).len() > 60);
        let missing = table::missing(&counts, version);
        assert!(missing.is_empty(), "not proven on {version}: {}", missing.join(", "));
    }
    assert!(document.contains(&table::markdown(&counts)), "the table was edited by hand");
}
