//! Who the superuser of a data directory is, without starting a server: the role that initdb made, by its current name.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result};
use postgres_ffi::authid::{AUTHID_OID, BOOTSTRAP_SUPERUSER_OID, current_name, role_rows};
use postgres_ffi::page::{Page, ZERO_PAGE};
use postgres_ffi::rel::SLRU_PAGES_PER_SEGMENT;
use postgres_ffi::relation_map::RelationMap;
use postgres_ffi::slru::{XidStatus, clog_place, clog_status};
use postgres_ffi::{BLCKSZ, PgVersion, TransactionId};

/// Name of the role with OID 10 in the data directory `data` of a cluster of `version`.
///
/// Errors: a file is missing or damaged, or the name is not UTF-8 or cannot be told; then `--user` has to name a role.
pub fn find(data: &Path, version: PgVersion) -> Result<String> {
    let told = "name a superuser with --user";
    let rows = rows(data, version).context(told)?;
    let mut failed = None;
    let status = |xid| {
        xid_status(data, xid).unwrap_or_else(|error| {
            failed = Some(error);
            XidStatus::InProgress
        })
    };
    let name = current_name(&rows, status);
    if let Some(error) = failed {
        return Err(error.context(told));
    }
    let name = name.with_context(|| format!("pg_authid does not tell what the role with OID 10 is called; {told}"))?;
    String::from_utf8(name).with_context(|| format!("the superuser's name is not UTF-8; {told}"))
}

fn rows(data: &Path, version: PgVersion) -> Result<Vec<postgres_ffi::authid::RoleRow>> {
    let path = data.join("global/pg_filenode.map");
    let bytes = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
    let map = RelationMap::decode(version, &bytes).with_context(|| format!("decode {}", path.display()))?;
    let number =
        map.rel_number_of(AUTHID_OID).with_context(|| format!("{} does not name pg_authid", path.display()))?;
    let path = data.join(format!("global/{number}"));
    let bytes = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
    let pages = (0..).zip(bytes.chunks_exact(BLCKSZ));
    let rows = pages.filter_map(|(block_no, page)| {
        let page: &Page = page.try_into().ok()?;
        Some(role_rows(page, block_no, BOOTSTRAP_SUPERUSER_OID))
    });
    Ok(rows.flatten().collect())
}

/// What CLOG says of `xid`. A page that is not there has nothing but transactions in progress.
fn xid_status(data: &Path, xid: TransactionId) -> Result<XidStatus> {
    let (page_no, index) = clog_place(xid);
    let path = data.join(format!("pg_xact/{:04X}", page_no / SLRU_PAGES_PER_SEGMENT));
    let offset = u64::from(page_no % SLRU_PAGES_PER_SEGMENT) * BLCKSZ as u64;
    let mut page = ZERO_PAGE;
    match File::open(&path).and_then(|file| file.read_exact_at(&mut page, offset)) {
        Ok(()) => Ok(clog_status(&page, index)),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::UnexpectedEof) => {
            Ok(XidStatus::InProgress)
        }
        Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
    }
}
