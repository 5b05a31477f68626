//! `pageserver`: makes a data directory, serves it, stops it, says how it is.
//!
//! Data goes to stdout, logs to stderr. Exit status: 0 done, 1 failed, 2 wrong use.

use std::io::Write;
use std::net::SocketAddr;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::{Args, Parser, Subcommand};
use nix::sys::signal::{Signal, kill};
use pageserver::config::{CONFIG_FILE_NAME, Config};
use pageserver::failpoint::{Failpoint, arm_from_environment};
use pageserver::import::ClusterFiles;
use pageserver::mend::{MendOptions, MendProgress, MendReport, mend};
use pageserver::page_service::{PageService, PageServiceConfig};
use pageserver::pid_file::{PID_FILE_NAME, PidFile};
use pageserver::timeline::Repository;
use postgres_ffi::PgVersion;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use tracing::info;

/// How often long work says how far it is.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(5);
/// How long `stop` waits for the server to write out what it holds in memory.
const STOP_TIMEOUT: Duration = Duration::from_secs(120);

/// Versioned page storage for stock PostgreSQL: takes a primary's WAL, gives back any page as of any LSN.
#[derive(Parser)]
#[command(version, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Args)]
struct DataDir {
    /// Directory of the store, the WAL and the configuration.
    #[arg(long, env = "PAGESERVER_DATA_DIR", value_name = "DIR")]
    data_dir: PathBuf,
}

#[derive(Subcommand)]
enum Command {
    /// Makes a new data directory with a configuration file; with --initdb also a new cluster as timeline `main`.
    Init(Init),
    /// Serves a data directory until SIGTERM or SIGINT.
    Serve(Serve),
    /// Ends the server of a data directory: it writes out what it holds, then exits.
    Stop(DataDir),
    /// Says whether a server runs on a data directory. How its timelines are says `pagectl timeline list`.
    Status(DataDir),
    /// Makes a store of which files cannot be read one that has all that can be, and knows what it lacks. The server must be stopped, and there must be room for
    /// the store once more. `pagectl verify` tells beforehand what is damaged.
    Mend(Mend),
    /// Lists the moments at which tests let the server crash: name and what has happened by then.
    Failpoints,
}

#[derive(Args)]
struct Init {
    #[command(flatten)]
    dir: DataDir,
    /// Runs initdb and imports the new cluster as timeline `main`.
    #[arg(long)]
    initdb: bool,
    /// Imports a data directory (stopped, crashed, or an unpacked base backup) as timeline `main`.
    #[arg(long, value_name = "DIR", conflicts_with = "initdb")]
    import_directory: Option<PathBuf>,
    /// Imports a base backup in tar files (base.tar, or the directory that holds it) as timeline `main`.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["initdb", "import_directory"])]
    import_tar: Option<PathBuf>,
    /// Major version of the new cluster, 14 to 18.
    #[arg(long, default_value = "15", requires = "initdb", value_name = "VERSION")]
    pg_version: PgVersion,
    /// Passed to initdb; may be given more than once.
    #[arg(long, requires = "initdb", value_name = "OPTION", allow_hyphen_values = true)]
    initdb_option: Vec<String>,
}

#[derive(Args)]
struct Serve {
    #[command(flatten)]
    dir: DataDir,
    /// Address to listen on, instead of the configured one.
    #[arg(long, env = "PAGESERVER_LISTEN", value_name = "ADDRESS:PORT")]
    listen: Option<SocketAddr>,
    /// Logs as one JSON object per line.
    #[arg(long)]
    log_json: bool,
}

#[derive(Args)]
struct Mend {
    #[command(flatten)]
    dir: DataDir,
    /// Only tells what cannot be read and what would become of it.
    #[arg(long)]
    dry_run: bool,
    /// Deletes a timeline that cannot be opened any more; may be given more than once.
    #[arg(long, value_name = "TIMELINE")]
    give_up: Vec<String>,
    /// Prints one JSON object.
    #[arg(long)]
    json: bool,
}

impl Init {
    fn files(&self) -> anyhow::Result<Option<ClusterFiles>> {
        let absolute = |path: &PathBuf| std::path::absolute(path).context("find the current directory");
        Ok(match (&self.import_directory, &self.import_tar) {
            (Some(path), _) => Some(ClusterFiles::Directory(absolute(path)?)),
            (None, Some(path)) => Some(ClusterFiles::Tar(absolute(path)?)),
            (None, None) => None,
        })
    }
}

fn main() {
    let cli = Cli::parse();
    let outcome = match cli.command {
        Command::Init(args) => init(&args),
        Command::Serve(args) => serve(&args),
        Command::Stop(args) => stop(&args.data_dir),
        Command::Status(args) => status(&args.data_dir),
        Command::Mend(args) => mend_store(args),
        Command::Failpoints => {
            Failpoint::ALL.iter().for_each(|failpoint| println!("{}\t{}", failpoint.name(), failpoint.moment()));
            Ok(())
        }
    };
    let status = match outcome {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("pageserver: {error:#}");
            1
        }
    };
    let _ = std::io::stdout().flush();
    // Everything is durable. A thread that still is in RocksDB must not meet static data of it that is being destroyed: it would abort.
    signal_hook::low_level::exit(status)
}

fn start_logging(json: bool) {
    let filter = tracing_subscriber::EnvFilter::try_from_env("PAGESERVER_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if json { builder.json().init() } else { builder.with_ansi(false).init() }
}

fn init(args: &Init) -> anyhow::Result<()> {
    let dir = &args.dir.data_dir;
    std::fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
    if std::fs::read_dir(dir)?.next().is_some() {
        bail!(
            "the directory is not empty; name a new one, or start the server on this one. data_dir=`{}`",
            dir.display()
        );
    }
    std::fs::write(dir.join(CONFIG_FILE_NAME), Config::default_file())?;
    let config = Config::load(dir)?;
    start_logging(false);
    let repository = Repository::open(dir, config)?;
    if args.initdb {
        let summary = repository.import_initdb("main", args.pg_version, &args.initdb_option)?;
        println!("{summary}");
    }
    if let Some(files) = args.files()? {
        let (_, summary) = repository.import_files("main", &files, &mut |_| ControlFlow::Continue(()))?;
        println!("{summary}");
    }
    repository.shutdown()?;
    println!("ready: pageserver serve --data-dir {}", dir.display());
    Ok(())
}

fn serve(args: &Serve) -> anyhow::Result<()> {
    let dir = &args.dir.data_dir;
    let mut config = Config::load(dir)
        .with_context(|| format!("is `{}` a data directory? `pageserver init` makes one", dir.display()))?;
    if let Some(listen) = args.listen {
        config.listen = listen;
    }
    config.check()?;
    start_logging(args.log_json);
    if let Some(armed) = arm_from_environment()? {
        info!(%armed, "a failpoint is armed: this server will crash");
    }
    let _pid_file = PidFile::claim(&dir.join(PID_FILE_NAME))?;
    // Registered before anything is opened, so that an early signal ends us cleanly too.
    let mut signals = Signals::new([SIGTERM, SIGINT])?;
    let begun = Instant::now();
    let repository = Repository::open(dir, config.clone())?;
    let service = PageService::start(service_config(&config), Arc::clone(&repository) as _)?;
    repository.follow_primaries()?;
    repository.start_collecting()?;
    repository.start_dropping_slots()?;
    info!(listen = %service.local_addr(), open_seconds = begun.elapsed().as_secs_f64(), "serving");
    let signal = signals.forever().next();
    info!(signal, "shutting down");
    service.shutdown();
    repository.shutdown()?;
    info!("stopped");
    Ok(())
}

fn service_config(config: &Config) -> PageServiceConfig {
    PageServiceConfig {
        listen: config.listen,
        connections_max: config.connections_max,
        idle_timeout: Duration::from_secs(config.idle_timeout_seconds),
        wait_lsn_timeout: config.wait_lsn_timeout(),
        ..PageServiceConfig::default()
    }
}

fn mend_store(args: Mend) -> anyhow::Result<()> {
    start_logging(false);
    let data_dir = &args.dir.data_dir;
    let options = MendOptions { dry_run: args.dry_run, give_up: args.give_up };
    let mut told_at = Instant::now();
    let mut progress = |progress: MendProgress| {
        if told_at.elapsed() >= PROGRESS_INTERVAL {
            told_at = Instant::now();
            let (mib, mib_total) = (progress.bytes >> 20, progress.bytes_total >> 20);
            info!(doing = progress.doing, mib, mib_total, "mending");
        }
    };
    let report = mend(data_dir, &options, &mut progress)
        .with_context(|| format!("nothing was mended. data_dir=`{}`", data_dir.display()))?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print_mended(&report);
    }
    Ok(())
}

fn print_mended(report: &MendReport) {
    for file in &report.files {
        println!("cannot be read as a whole: {}", file.display());
    }
    if let Some(cause) = &report.cause {
        println!("{cause}");
    }
    for timeline in &report.timelines {
        if timeline.is_given_up {
            println!("{}: given up", timeline.name);
            continue;
        }
        println!("{}: stretches that are lost: {}", timeline.name, timeline.lost.len());
        timeline.lost.iter().for_each(|lost| println!("    {lost}"));
        if let (Some(from), Some(to)) = (timeline.ingested_again_from, timeline.last_record_lsn) {
            println!("    WAL from {from} to {to} is ingested again at the next start: what it holds is not lost");
        }
    }
    println!("versions that can be read: {}", report.versions);
    match &report.old_store {
        Some(dir) => println!("mended; the old store is in {}: remove it when you are satisfied", dir.display()),
        None => println!("nothing was changed"),
    }
}

fn stop(data_dir: &Path) -> anyhow::Result<()> {
    let path = data_dir.join(PID_FILE_NAME);
    let Some(pid) = PidFile::holder(&path)? else {
        bail!("no page server runs on this data directory. data_dir=`{}`", data_dir.display());
    };
    kill(pid, Signal::SIGTERM).with_context(|| format!("signal pid {pid}"))?;
    let begun = Instant::now();
    while PidFile::holder(&path)?.is_some() {
        if begun.elapsed() > STOP_TIMEOUT {
            bail!("the page server has not ended within {} s. pid=`{pid}`", STOP_TIMEOUT.as_secs());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    println!("stopped");
    Ok(())
}

fn status(data_dir: &Path) -> anyhow::Result<()> {
    let Some(pid) = PidFile::holder(&data_dir.join(PID_FILE_NAME))? else {
        bail!("no page server runs on this data directory. data_dir=`{}`", data_dir.display());
    };
    println!("running, pid {pid}");
    Ok(())
}
