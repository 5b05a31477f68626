//! Goal: each form gives its command, everything else an error with a SQLSTATE and, where it helps, a hint. Method: tables.
use postgres_ffi::{ForkNumber, Lsn, RelTag, SlruKind};

use super::super::object::ObjectClass;
use super::super::verify::RepairRequest;
use super::super::{DatabaseAddress, PageAddress};
use super::*;
use crate::page_service::gc::GcCommand;
use crate::page_service::lease::LeaseCommand;
use crate::page_service::size::SizeCommand;
use crate::page_service::timeline_change::TimelineChange;
use crate::timeline::gc::{OwnRetention, RetentionTime, WalSize};
use crate::timeline::{BranchPoint, SlotThen};
use crate::verify::VerifyOptions;

fn check(text: &str, expect: Command) {
    assert_eq!(parse(text), Ok(vec![expect]), "{text}");
}

fn check_error(text: &str, sqlstate: &str, part: &str) {
    let error = parse(text).expect_err(text);
    assert_eq!(error.sqlstate, sqlstate, "{text}: {error}");
    assert!(error.message.contains(part), "{text}: {error}");
}

const ADDRESS: PageAddress = PageAddress::Block {
    rel: RelTag { spc_oid: 1663, db_oid: 5, rel_number: 16384 },
    fork: ForkNumber::Vm,
    block_no: 7,
};

#[test]
fn forms() {
    let main = || "main".to_owned();
    let at = Some(Lsn::new(0x16B5A50));
    check("Help", Command::Help);
    check("SHOW timelines;", Command::TimelineList);
    check("timeline list", Command::TimelineList);
    check("show timeline main", Command::TimelineShow { timeline: main() });
    check("show timeline 'main'", Command::TimelineShow { timeline: main() });
    check("timeline show \"show\"", Command::TimelineShow { timeline: "show".into() });
    check("show last_record_lsn", Command::LastRecordLsn { timeline: None });
    check("show last_record_lsn main", Command::LastRecordLsn { timeline: Some(main()) });
    check("show lag", Command::Lag { timeline: None });
    check("show lag main", Command::Lag { timeline: Some(main()) });
    check("show sizes", Command::Sizes { timeline: None, at: None });
    check("show sizes main", Command::Sizes { timeline: Some(main()), at: None });
    check("show sizes at 0/16B5A50", Command::Sizes { timeline: None, at });
    check("show sizes main at 0/16b5a50", Command::Sizes { timeline: Some(main()), at });
    check("show sizes \"at\"", Command::Sizes { timeline: Some("at".into()), at: None });
    let time = "2026-11-25 13:32:00Z".parse().expect("a time");
    check("show lsn main at time '2026-11-25 14:32:00+01'", Command::LsnAtTime { timeline: main(), time });
    let time = "5 minutes ago".parse().expect("a time");
    check("SHOW LSN 'main' AT TIME '-5min'", Command::LsnAtTime { timeline: main(), time });
    check("show time main", Command::TimeAtLsn { timeline: main(), at: None });
    check("show time main at 0/16B5A50", Command::TimeAtLsn { timeline: main(), at });
    check("show status", Command::Status);
    check("store stats", Command::StoreStats);
    let verify = |timeline: Option<&str>, bytes_per_second| {
        Command::Verify(VerifyOptions { timeline: timeline.map(str::to_owned), bytes_per_second })
    };
    check("verify", verify(None, None));
    check("VERIFY main RATE 8", verify(Some("main"), Some(8 << 20)));
    check("verify rate 8", verify(None, Some(8 << 20)));
    check("verify 'rate'", verify(Some("rate"), None));
    check_error("verify main rate 0", "22023", "no rate");
    check_error("verify main rate 99999999999999999999", "22023", "number too large");
    let repair = |timeline: Option<&str>, dry_run| {
        Command::Repair(RepairRequest { timeline: timeline.map(str::to_owned), dry_run })
    };
    check("repair", repair(None, false));
    check("REPAIR main DRY RUN", repair(Some("main"), true));
    check("repair dry run", repair(None, true));
    check_error("repair main dry", "42601", "RUN");
    check("show redo", Command::RedoStats);
    let conninfo = Conninfo("host=/tmp user='x'".into());
    let import = |from| Command::Import { name: main(), from };
    check("import main from 'host=/tmp user=''x'''", import(ImportFrom::Primary(conninfo)));
    let files = |files| import(ImportFrom::Files(files));
    check("import main from directory '/srv/pg data'", files(ClusterFiles::Directory("/srv/pg data".into())));
    check("IMPORT main FROM TAR '/backup/base.tar.gz'", files(ClusterFiles::Tar("/backup/base.tar.gz".into())));
    check("import main from 'tar'", import(ImportFrom::Primary(Conninfo("tar".into()))));
    let change = |change| Command::TimelineChange(change);
    let point = BranchPoint::Lsn(Lsn::new(0x16B5A50));
    let (name, timeline) = (|| "b".to_owned(), main);
    let create = |point| change(TimelineChange::CreateBranch { name: name(), timeline: timeline(), point });
    check("branch create b from main", create(BranchPoint::Last));
    let time = BranchPoint::Time("2026-11-25 13:32:00Z".parse().expect("a time"));
    check("branch create b from main at time '2026-11-25 13:32'", create(time));
    check(
        "branch reset main at time '2026-11-25 13:32'",
        change(TimelineChange::Reset { timeline: timeline(), point: time }),
    );
    check("BRANCH CREATE b FROM main AT 0/16B5A50", create(point));
    check("branch delete main", change(TimelineChange::Delete { timeline: timeline() }));
    check("timeline delete main", change(TimelineChange::Delete { timeline: timeline() }));
    check("branch rename main to b", change(TimelineChange::Rename { timeline: timeline(), new_name: name() }));
    check("branch reset main", change(TimelineChange::Reset { timeline: timeline(), point: BranchPoint::Last }));
    check("branch reset main at 0/16B5A50", change(TimelineChange::Reset { timeline: timeline(), point }));
    check("branch detach main", change(TimelineChange::Detach { timeline: timeline() }));
    let conninfo = Conninfo("host=/tmp".into());
    check("timeline follow main from 'host=/tmp'", change(TimelineChange::Follow { timeline: timeline(), conninfo }));
    let unfollow = |slot| change(TimelineChange::Unfollow { timeline: timeline(), slot });
    check("timeline unfollow main", unfollow(SlotThen::Dropped));
    check("timeline unfollow main keep slot", unfollow(SlotThen::Kept));
    let give = |timeline, seconds| Command::Lease(LeaseCommand::Give { timeline, lsn: Lsn::new(16), seconds });
    check("lease main at 0/10", give(main(), None));
    check("lease main at 0/10 for 30", give(main(), Some(30)));
    check("lease 'list' at 0/10", give("list".into(), None));
    check("lease list", Command::Lease(LeaseCommand::List { timeline: None }));
    check("lease list main", Command::Lease(LeaseCommand::List { timeline: Some(main()) }));
    let size = |text: &str, timeline, at, pins| check(text, Command::Size(SizeCommand { timeline, at, pins }));
    size("size", None, None, false);
    size("SIZE main pins", Some(main()), None, true);
    size("size at 0/16B5A50", None, "0/16B5A50".parse().ok(), false);
    size("size main at 0/16B5A50 pins", Some(main()), "0/16B5A50".parse().ok(), true);
    size("size \"pins\"", Some("pins".into()), None, false);
    let gc = |text: &str, command| check(text, Command::Gc(command));
    gc("gc status", GcCommand::Status { timeline: None });
    gc("GC status main", GcCommand::Status { timeline: Some(main()) });
    gc("gc run", GcCommand::Run { timeline: None, dry_run: false });
    gc("gc plan main", GcCommand::Run { timeline: Some(main()), dry_run: true });
    gc("gc pause", GcCommand::Pause { paused: true });
    gc("gc resume", GcCommand::Pause { paused: false });
    let (time, wal) = (Some(RetentionTime::from_seconds(604_800)), Some(WalSize::from_bytes(1 << 30)));
    let keep = |change| GcCommand::Retention { timeline: main(), change };
    gc("timeline retention main", keep(None));
    gc("timeline retention main default", keep(Some(None)));
    gc("timeline retention main time '7d'", keep(Some(Some(OwnRetention { time, wal: None }))));
    gc("timeline retention main time 7d wal 1GiB", keep(Some(Some(OwnRetention { time, wal }))));
    check("lease end 7", Command::Lease(LeaseCommand::End { lease_id: 7 }));
    check("database list main at 0/16B5A50", Command::DatabaseList { timeline: main(), at });
    check("relation list main", Command::RelationList { timeline: main(), database: None, at: None });
    let database = Some(DatabaseAddress { spc_oid: 1663, db_oid: 5 });
    check("relation list main in 1663/5 at 0/16B5A50", Command::RelationList { timeline: main(), database, at });
    check("slru list main", Command::SlruList { timeline: main(), at: None });
    check("object list main", Command::ObjectList { timeline: main(), class: None, at: None });
    for class in ObjectClass::ALL {
        let command = Command::ObjectList { timeline: main(), class: Some(class), at };
        check(&format!("object list main class {class} at 0/16B5A50"), command);
    }
    let backup = |tenant: Option<&str>, request_lsn, gzip, no_data| {
        let tenant = tenant.map(str::to_owned);
        let standby = false;
        Command::BaseBackup(BackupRequest { tenant, timeline: main(), request_lsn, gzip, no_data, standby })
    };
    check("basebackup main", backup(None, None, false, false));
    let standby =
        BackupRequest { tenant: None, timeline: main(), request_lsn: None, gzip: false, no_data: false, standby: true };
    check("basebackup main --standby", Command::BaseBackup(standby));
    check("BASEBACKUP t main --gzip", backup(Some("t"), None, true, false));
    check("basebackup main 0/16B5A50", backup(None, at, false, false));
    check("basebackup t 'main' 0/16B5A50 --no-data --GZIP", backup(Some("t"), at, true, true));
    let file = "000000010000000000000002".to_owned();
    check("wal get main 000000010000000000000002", Command::WalGet { timeline: main(), file: file.clone() });
    check("WAL GET 'main' '000000010000000000000002'", Command::WalGet { timeline: main(), file });
    check("page get main 1663/5/16384/vm/7", Command::PageGet { timeline: main(), address: ADDRESS, at: None });
    let clog = PageAddress::Slru { kind: SlruKind::Clog, page_no: 3 };
    check("page get main pg_xact/3 at '0/16B5A50'", Command::PageGet { timeline: main(), address: clog, at });
    let history = |from, to| Command::PageHistory { timeline: main(), address: ADDRESS, from, to };
    check("page history main 1663/5/16384/vm/7", history(None, None));
    check("page history main 1663/5/16384/vm/7 from 0/16B5A50", history(at, None));
    check("page history main 1663/5/16384/vm/7 from 0/16B5A50 to 0/16B5A50", history(at, at));
}

#[test]
fn what_programs_send() {
    let id = "3aa8fcc61f6d357410b7de754b1d9001";
    let stream = |version, tenant: Option<&str>| Command::Pagestream {
        version,
        tenant: tenant.map(str::to_owned),
        timeline: id.to_owned(),
    };
    check(&format!("pagestream_v3 {id} {id}"), stream(Version::V3, Some(id)));
    check(&format!("PAGESTREAM_V2 {id} {id}"), stream(Version::V2, Some(id)));
    check(&format!("pagestream_v3 {id}"), stream(Version::V3, None));
    check("SET extra_float_digits = 3", Command::Ignored { tag: "SET" });
    check("set statement_timeout to '1s', x", Command::Ignored { tag: "SET" });
    check("BEGIN", Command::Transaction { tag: "BEGIN", begins: true });
    check("rollback", Command::Transaction { tag: "ROLLBACK", begins: false });
    check("select 1", Command::Select { item: SelectItem::Number(1) });
    check("SELECT 'x'", Command::Select { item: SelectItem::Text("x".into()) });
    check("select version();", Command::Select { item: SelectItem::Version });
    check("SELECT pg_catalog.pg_is_in_recovery()", Command::Select { item: SelectItem::IsInRecovery });
    check("deallocate all", Command::Deallocate { name: None });
    check("DEALLOCATE prepare s1", Command::Deallocate { name: Some("s1".into()) });
    for (name, value) in [("server_encoding", "UTF8"), ("transaction_read_only", "off")] {
        let parsed = parse(&format!("SHOW {name}")).expect(name);
        assert!(matches!(&parsed[..], [Command::ShowParameter { parameter: (n, v) }] if *n == name && *v == value));
    }
    assert!(parse("show transaction isolation level").is_ok());
}

#[test]
fn several_statements() {
    assert_eq!(parse(" ; "), Ok(vec![]));
    assert_eq!(parse("help; select 1;"), Ok(vec![Command::Help, Command::Select { item: SelectItem::Number(1) }]));
    check_error("help; bogus", "42601", "bogus");
}

#[test]
fn errors() {
    check_error("bogus", "42601", "unknown command. command=`bogus`");
    check_error("'help'", "42601", "expected a command");
    check_error("help me", "42601", "at or near \"me\" (position 5)");
    check_error("show", "42601", "at end of input");
    check_error("show bogus", "42704", "bogus");
    check_error("show timeline", "42601", "a timeline");
    check_error("show timeline ''", "42601", "a timeline");
    check_error("timeline drop", "42601", "at or near \"drop\"");
    check_error("timeline", "42601", "at end of input");
    check_error("page", "42601", "GET or HISTORY");
    check_error("page get main 1663/5/x/main/0", "22023", "not a page address");
    check_error("page get main 1663/5/1/main/+1", "22023", "not a page address");
    check_error("page get main 1663/5/1/main/4294967296", "22023", "not a page address");
    check_error("page get main 1663/5/1/main/0 at 7", "22023", "not an LSN");
    check_error("page get main 1663/5/1/main/0 at", "42601", "an LSN");
    check_error("relation list main in 5", "22023", "1663/5");
    check_error("show lsn main", "42601", "AT");
    check_error("show lsn main at 0/1", "42601", "TIME");
    check_error("show lsn main at time", "42601", "a time like");
    check_error("show lsn main at time yesterday", "22023", "not a time");
    check_error("show time main at 2026-11-25", "22023", "not an LSN");
    check_error("object get main", "42601", "LIST");
    check_error("object list main class", "42601", "a class of objects");
    check_error("object list main class relation_block", "22023", "not a class of objects");
    check_error("import x", "42601", "FROM");
    check_error("import x from tar", "42601", "a path");
    check_error("import x from directory /a b", "42601", "at or near");
    check_error("import x from 'password=secret' y", "42601", "at or near \"y\"");
    check_error("select * from pg_class", "0A000", "page server");
    check_error("lease lsn a b 0/1", "42601", "AT");
    check_error("lease main at 0/1 for ever", "22023", "invalid digit");
    check_error("lease end x", "22023", "invalid digit");
    check_error("gc", "42601", "STATUS, RUN, PLAN, PAUSE or RESUME");
    check_error("gc pause main", "42601", "the end of the command");
    check_error("timeline retention main time ever", "22023", "a stretch of time");
    check_error("timeline retention main wal 1GB", "22023", "a size");
    check_error("timeline retention main default wal 1GiB", "42601", "the end of the command");
    check_error("basebackup", "42601", "a timeline");
    check_error("basebackup a b 7", "22023", "not an LSN");
    check_error("basebackup a --zip", "42601", "--gzip, --no-data or --standby");
    check_error("basebackup a --gzip --gzip", "42601", "--gzip, --no-data or --standby");
    check_error("basebackup a b 0/1 c", "42601", "the end of the command");
    check_error("wal", "42601", "GET");
    check_error("wal get main", "42601", "the name of a WAL file");
    check_error("wal get main a b", "42601", "the end of the command");
    check_error("fullbackup a b", "0A000", "not supported yet");
    check_error("branch", "42601", "CREATE");
    check_error("branch create a main", "42601", "FROM");
    check_error("branch create a from main at 7", "22023", "not an LSN");
    check_error("timeline follow a 'password=secret'", "42601", "FROM");
    check_error("show timeline $1", "0A000", "no parameters");
    check_error("help 'x", "42601", "unterminated");
}

#[test]
fn an_error_never_repeats_quoted_text() {
    let follow = parse("timeline follow x from 'password=secret'").expect("parses");
    assert!(!format!("{follow:?}").contains("secret"));
    let error = parse("import x 'password=secret'").expect_err("no FROM");
    assert!(!format!("{error:?}").contains("secret"));
    let command = parse("import x from 'password=secret'").expect("parses");
    assert!(!format!("{command:?}").contains("secret"));
}

#[test]
fn a_hint_shows_the_form() {
    let error = parse("page").expect_err("incomplete");
    let hint = error.hint.expect("hint");
    assert!(hint.contains("PAGE GET name address [AT lsn]"), "{hint}");
}

#[test]
fn addresses_read_as_they_are_written() {
    for text in ["1663/5/16384/main/0", "1664/0/1262/init/4294967295", "pg_xact/7", "pg_multixact/members/12"] {
        let address: PageAddress = text.parse().expect(text);
        assert_eq!(address.to_string(), text);
        assert_eq!(address.key().to_string(), text);
    }
}
