//! A server that runs on a data directory: its files change while they are read, and nobody would know.
//!
//! - `postmaster.pid` names the server; after a crash it is left behind and its number may be another process's by then. So what counts
//!   is a process that works *in* the directory: PostgreSQL's do, server and sessions (PG 14-18: src/backend/utils/init/miscinit.c, ChangeToDataDir).
//!   It is the same directory by device and inode, whatever it is called where the process is: in a container, or behind a bind mount.
//! - Where a process does not tell us its directory (another user's, and we are not root), the number alone has to do.

use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::errno::Errno;
use nix::sys::signal::kill;
use nix::unistd::Pid;

/// Name of the file.
const PID_FILE: &str = "postmaster.pid";

/// The process id of a server that runs on `data_dir`, or of a session that outlived its server.
pub(super) fn running_server(data_dir: &Path) -> Option<i32> {
    let dir = fs::metadata(data_dir).ok()?;
    named_in_pid_file(data_dir, &dir).or_else(|| working_in(&dir))
}

fn named_in_pid_file(data_dir: &Path, dir: &Metadata) -> Option<i32> {
    let text = fs::read_to_string(data_dir.join(PID_FILE)).ok()?;
    // A standalone backend writes its number negative.
    let pid = text.lines().next()?.trim().parse::<i32>().ok()?.checked_abs().filter(|pid| *pid > 0)?;
    let is_there = kill(Pid::from_raw(pid), None) != Err(Errno::ESRCH);
    let is_elsewhere = works_in(pid, dir) == Some(false);
    (is_there && !is_elsewhere).then_some(pid)
}

/// Any PostgreSQL process whose directory is `dir`, as far as we may look.
fn working_in(dir: &Metadata) -> Option<i32> {
    let pids = fs::read_dir("/proc").ok()?.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
    pids.into_iter().find(|pid| {
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        name.trim() == "postgres" && works_in(*pid, dir) == Some(true)
    })
}

/// `None`: we may not look. The link leads to the directory itself, also out of another mount namespace.
fn works_in(pid: i32, dir: &Metadata) -> Option<bool> {
    let working_dir = fs::metadata(format!("/proc/{pid}/cwd")).ok()?;
    Some((working_dir.dev(), working_dir.ino()) == (dir.dev(), dir.ino()))
}

#[cfg(test)]
mod tests {
    //! Goal: a process that works in the directory is found, a number that is another's is not. Method: this very process; real servers are
    //! in `tests/tests/import_files.rs`.

    use super::*;

    #[test]
    fn a_number_counts_only_where_its_process_works() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(running_server(dir.path()), None);
        let own = std::process::id();
        for content in
            [String::new(), "x\n".to_owned(), "0\n".to_owned(), format!("{}\n", i32::MIN), format!("{own}\n/x\n")]
        {
            fs::write(dir.path().join(PID_FILE), content).unwrap();
            assert_eq!(running_server(dir.path()), None);
        }
        let here = std::env::current_dir().unwrap();
        let file = tempfile::Builder::new().tempdir_in(&here).unwrap();
        assert_eq!(running_server(file.path()), None);
        let works_in = |dir: &Path| works_in(own as i32, &fs::metadata(dir).unwrap());
        assert_eq!((works_in(&here), works_in(file.path())), (Some(true), Some(false)));
        // By another name.
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&here, &link).unwrap();
        assert_eq!(works_in(&link), Some(true));
    }
}
