//! The redo engine of a tenant: redo in Rust, a stock `postgres` with our extension found on this machine, or both.
//!
//! - With `native` a process is only for records of extensions; that there is none is no reason to warn.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use nix::unistd::Uid;
use postgres_ffi::PgVersion;
use postgres_ffi::control_file::ControlFile;
use tracing::{info, warn};

use super::{Repository, RepositoryError};
use crate::config::RedoEngine;
use crate::redo::failed_input::FailedInputs;
use crate::redo::native::NativeEngine;
use crate::redo::process::{PostgresProgram, ProcessConfig, ProcessEngine, Program};
use crate::redo::verify::{VerifiedCluster, VerifyEngine};
use crate::redo::{Engine, NoEngine, RedoConfig, WalRedo};
use crate::timeline::TimelineMetadata;

/// File name of the redo extension.
const EXTENSION_FILE_NAME: &str = "pageserver_redo.so";
/// The most failed inputs that the directory for them holds.
const FAILED_INPUTS_MAX: usize = 32;

impl Repository {
    /// The walredo threads of the timeline's tenant. No process is started before a page needs one.
    pub(super) fn redo_of(&self, metadata: &TimelineMetadata, control_file: &ControlFile) -> Arc<WalRedo> {
        let mut all = self.redo.lock();
        let redo = all.entry(metadata.tenant_id).or_insert_with(|| {
            let threads = self.config.redo.threads;
            // Enough that no thread waits for the next chain, and no more: what waits there is whole chains.
            let config = RedoConfig { threads, backlog_len: 2 * threads, ..RedoConfig::default() };
            WalRedo::start(&config, self.engine(metadata.cluster.pg_version, control_file))
        });
        Arc::clone(redo)
    }

    fn engine(&self, version: PgVersion, control_file: &ControlFile) -> Arc<dyn Engine> {
        let process = self.process_engine(version, control_file);
        let failed_inputs = || FailedInputs::new(self.redo_failed_dir.clone(), FAILED_INPUTS_MAX);
        match (self.config.redo.engine, process) {
            (RedoEngine::Native, process) => {
                info!(%version, engine = "native", process_for_extensions = process.is_some(), "redo engine");
                let others = process.unwrap_or_else(|| Arc::new(NoEngine));
                Arc::new(
                    NativeEngine::new(version, others)
                        .saving_failed_inputs(failed_inputs(), control_file.encode().into()),
                )
            }
            (RedoEngine::Postgres, Some(process)) => process,
            (RedoEngine::Verify, Some(process)) => {
                let cluster = VerifiedCluster { version, pg_control: control_file.encode().into() };
                Arc::new(VerifyEngine::new(cluster, process, Some(failed_inputs())))
            }
            (RedoEngine::Postgres | RedoEngine::Verify, None) => {
                warn!(%version, "no redo engine: pages that need redo will be refused. Install PostgreSQL and the redo extension of this version, or name their directories in [redo], or set redo.engine = \"native\"");
                Arc::new(NoEngine)
            }
        }
    }

    /// The redo process of the tenant, not started yet. `None`: this machine has not all that it needs.
    fn process_engine(&self, version: PgVersion, control_file: &ControlFile) -> Option<Arc<dyn Engine>> {
        let (postgres, extension) = (self.find_postgres(version)?, self.find_extension(version)?);
        info!(%version, postgres = %postgres.display(), extension = %extension.display(), "redo process");
        let program = PostgresProgram {
            postgres,
            extension,
            pg_control: control_file.encode().into(),
            // Whether hint bits are logged was settled at ingest (see `delta::Delta::HeapAllVisible`): what is left to redo stamps.
            wal_log_hints: true,
            preload_libraries: self.config.redo.preload_libraries.clone(),
            work_dir: None,
            run_as: Uid::effective().is_root().then(|| self.config.redo.run_as.clone()),
        };
        let config = ProcessConfig {
            timeout: Duration::from_secs(self.config.redo.timeout_seconds),
            failed_inputs_dir: Some(self.redo_failed_dir.clone()),
            failed_inputs_max: FAILED_INPUTS_MAX,
            ..ProcessConfig::new(Program::Postgres(program), version)
        };
        Some(Arc::new(ProcessEngine::new(config)))
    }

    /// The directory of the programs of PostgreSQL `version`. Errors: there is none.
    pub(super) fn postgres_bin_dir(&self, version: PgVersion) -> Result<PathBuf, RepositoryError> {
        let found = self.find_postgres(version).and_then(|postgres| postgres.parent().map(PathBuf::from));
        found.ok_or(RepositoryError::PostgresMissing { version })
    }

    fn find_postgres(&self, version: PgVersion) -> Option<PathBuf> {
        let dirs = self.config.postgres_bin_dirs(version);
        // A configured directory may hold any version; the file beside `bin` tells which.
        dirs.into_iter().map(|dir| dir.join("postgres")).find(|path| path.exists() && is_of_version(path, version))
    }

    fn find_extension(&self, version: PgVersion) -> Option<PathBuf> {
        let beside_program = std::env::current_exe().ok().and_then(|exe| exe.parent().map(PathBuf::from));
        // Cargo puts programs into `target/release`, tests into `target/release/deps`; `make extension` into `target/redo_extension`.
        let built = beside_program.iter().flat_map(|dir| dir.ancestors().take(3).map(|dir| dir.join("redo_extension")));
        let installed = [PathBuf::from("/usr/local/lib/pageserver"), PathBuf::from("/usr/lib/pageserver")];
        let dirs = self.config.redo.extension_dir.clone().into_iter().chain(built).chain(installed);
        dirs.map(|dir| dir.join(version.to_string()).join(EXTENSION_FILE_NAME)).find(|path| path.exists())
    }
}

/// Asks the program itself. A program that does not answer is of no version.
fn is_of_version(postgres: &std::path::Path, version: PgVersion) -> bool {
    let output = std::process::Command::new(postgres).arg("--version").env_clear().env("LC_ALL", "C").output();
    output.is_ok_and(|output| {
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let number = text.trim_start_matches("postgres (PostgreSQL) ");
        number.split(['.', ' ', 'b', 'd', 'r']).next() == Some(&version.to_string())
    })
}
