//! Tokens to a [`Command`]: a table of forms, each a few keywords and typed values.
//!
//! Keywords in any case; names as they are, in double or single quotes where they hold spaces or quotes. Everything that a command needs is checked here.

use std::fmt::Display;
use std::path::PathBuf;
use std::str::FromStr;

use postgres_ffi::Lsn;

mod branch;
mod gc;
mod size;
mod verify;

use super::import::ImportFrom;
use super::token::{Token, TokenKind, statements};
use super::{Command, Conninfo, SelectItem};
use crate::import::ClusterFiles;
use crate::page_service::basebackup::BackupRequest;
use crate::page_service::connection::PARAMETERS;
use crate::page_service::error::{PgError, sqlstate};
use crate::page_service::pagestream::wire::Version;
use crate::wall_time::TimeSpec;

/// Every form, as `HELP` shows them.
pub const FORMS: &[(&str, &str)] = &[
    ("HELP", "this list"),
    ("SHOW TIMELINES", "every timeline with its LSNs; also TIMELINE LIST"),
    ("SHOW TIMELINE name", "all about one timeline; also TIMELINE SHOW name"),
    ("SHOW LAST_RECORD_LSN [name]", "end of the last record that can be read"),
    ("SHOW LAG [name]", "how far each timeline is behind its source"),
    ("SHOW SIZES [name] [AT lsn]", "relations, blocks and bytes per database"),
    (
        "SIZE [name] [AT lsn] [PINS]",
        "how big each timeline is, what its history and WAL take, what its deletion gives back; PINS: count what it keeps in its ancestors",
    ),
    (
        "SHOW LSN name AT TIME 'time'",
        "how far a timeline was at a time; time: 2026-11-25 14:32:00+01 (UTC without a zone), 5 minutes ago",
    ),
    ("SHOW TIME name [AT lsn]", "time of the last commit"),
    ("SHOW STATUS", "the server: version, process id, connections, counters"),
    ("STORE STATS", "figures of the store"),
    ("SHOW REDO", "redo engine and counters of each cluster"),
    ("IMPORT name FROM 'conninfo'", "makes a timeline from a running primary"),
    (
        "IMPORT name FROM DIRECTORY 'path'",
        "makes a timeline from a stopped or crashed data directory, or an unpacked base backup, on the server's machine",
    ),
    ("IMPORT name FROM TAR 'path'", "makes a timeline from a base backup in tar files (pg_basebackup --format=tar)"),
    (
        "BRANCH CREATE name FROM timeline [AT lsn | AT TIME 'time']",
        "makes a branch of a timeline as it was; nothing is copied",
    ),
    ("BRANCH DELETE name", "deletes a branch that nothing branches off; also TIMELINE DELETE name for any timeline"),
    ("BRANCH RENAME name TO name", "gives a timeline another name"),
    (
        "BRANCH RESET name [AT lsn | AT TIME 'time']",
        "throws away what a branch has and begins it anew at its ancestor's last record or an LSN",
    ),
    ("BRANCH DETACH name", "copies what a branch reads from its ancestors, so that it needs them no more"),
    ("TIMELINE FOLLOW name FROM 'conninfo'", "takes the timeline's WAL from this primary from now on"),
    (
        "TIMELINE UNFOLLOW name [KEEP SLOT]",
        "takes no WAL any more; the slot at the primary is dropped, or left alone: when the primary is gone, say",
    ),
    ("TIMELINE DELETE name", "deletes a timeline that nothing branches off"),
    ("LEASE name AT lsn [FOR seconds]", "keeps an LSN readable for a while, 600 seconds unless told"),
    ("LEASE LIST [name]", "leases that are valid"),
    ("LEASE END lease", "ends a lease"),
    (
        "TIMELINE RETENTION name [TIME 'time'] [WAL 'size'] | DEFAULT",
        "how much history a timeline keeps: what lies within either; time: 7d, 36h; size: 1GiB; 0: none; without any only shown",
    ),
    ("GC STATUS [name]", "how garbage collection stands"),
    ("GC PLAN [name]", "what a run would remove; nothing is written"),
    ("GC RUN [name]", "removes history that nobody may ask for any more"),
    ("GC PAUSE", "no run begins by itself until GC RESUME, or the next start"),
    ("GC RESUME", "runs begin by themselves again"),
    (
        "VERIFY [name] [RATE mib]",
        "reads everything again and lists what is damaged, at most so many MiB a second: store, pages, WAL, metadata",
    ),
    ("REPAIR [name] [DRY RUN]", "mends what can be mended: WAL from the primary, files of metadata; lists what cannot"),
    ("DATABASE LIST name [AT lsn]", "databases per tablespace"),
    ("RELATION LIST name [IN tablespace/database] [AT lsn]", "relation forks with their blocks"),
    ("SLRU LIST name [AT lsn]", "segments of pg_xact, pg_multixact, pg_commit_ts"),
    (
        "OBJECT LIST name [CLASS class] [AT lsn]",
        "what is no page, whole; classes: control_file, checkpoint, database, relation_map, two_phase, replication_origin",
    ),
    ("PAGE GET name address [AT lsn]", "one page; address: 1663/5/16384/main/0 or pg_xact/0"),
    ("PAGE HISTORY name address [FROM lsn] [TO lsn]", "every stored version of one page, newest first"),
    (
        "BASEBACKUP [tenant] name [lsn] [--gzip] [--no-data] [--standby]",
        "a tar to start a PostgreSQL from, by COPY OUT; --no-data: without relations; --standby: one that follows the primary",
    ),
    (
        "WAL GET name file",
        "a WAL segment that was received to its end, or a history file, by COPY OUT: for restore_command",
    ),
    ("PAGESTREAM_V3 [tenant] name", "starts a page stream; for programs (PAGESTREAM_V2: the older messages)"),
];

/// The commands in `text`, in order. Nothing may run unless all of it parses. Errors: 42601, 0A000, 22023.
pub fn parse(text: &str) -> Result<Vec<Command>, PgError> {
    let statements = statements(text).map_err(|error| PgError::new(sqlstate::SYNTAX_ERROR, error.to_string()))?;
    statements.iter().map(|tokens| parse_statement(tokens)).collect()
}

fn parse_statement(tokens: &[Token<'_>]) -> Result<Command, PgError> {
    let mut parser = Parser { tokens, next: 0 };
    if tokens.iter().any(|token| token.kind == TokenKind::Parameter) {
        return Err(PgError::new(sqlstate::FEATURE_NOT_SUPPORTED, "commands take no parameters")
            .with_hint("Write the value into the text of the command, in single quotes."));
    }
    let first = parser.keyword_text();
    match first.as_deref() {
        Some("help") => parser.finish(Command::Help),
        Some("show") => parser.show(),
        Some("timeline") => parser.timeline(),
        Some("store") => parser.then("stats").and_then(|()| parser.finish(Command::StoreStats)),
        Some("import") => parser.import(),
        Some("branch") => parser.branch(),
        Some("lease") => parser.lease(),
        Some("gc") => parser.gc(),
        Some("size") => parser.size(),
        Some("verify") => parser.verify(),
        Some("repair") => parser.repair(),
        Some("database") => parser.then("list").and_then(|()| parser.database_list()),
        Some("relation") => parser.then("list").and_then(|()| parser.relation_list()),
        Some("slru") => parser.then("list").and_then(|()| parser.slru_list()),
        Some("object") => parser.then("list").and_then(|()| parser.object_list()),
        Some("page") => parser.page(),
        Some("pagestream_v2") => parser.pagestream(Version::V2),
        Some("pagestream_v3") => parser.pagestream(Version::V3),
        Some("basebackup") => parser.base_backup(),
        Some("wal") => parser.then("get").and_then(|()| parser.wal_get()),
        Some("select") => parser.select(),
        Some("deallocate") => parser.deallocate(),
        Some(word) => without_rows(word).map_or_else(|| Err(parser.unknown(word)), Ok),
        None => Err(parser.unexpected("a command")),
    }
}

/// What drivers send at connect or around their statements.
fn without_rows(word: &str) -> Option<Command> {
    let transaction = |tag, begins| Some(Command::Transaction { tag, begins });
    match word {
        "set" => Some(Command::Ignored { tag: "SET" }),
        "reset" => Some(Command::Ignored { tag: "RESET" }),
        "discard" => Some(Command::Ignored { tag: "DISCARD ALL" }),
        "begin" => transaction("BEGIN", true),
        "start" => transaction("START TRANSACTION", true),
        "commit" | "end" => transaction("COMMIT", false),
        "rollback" | "abort" => transaction("ROLLBACK", false),
        _ => None,
    }
}

/// Tenant, timeline and LSN of a base backup.
const NAMES_OF_BACKUP_MAX: usize = 3;

struct Parser<'a> {
    tokens: &'a [Token<'a>],
    next: usize,
}

impl Parser<'_> {
    fn show(&mut self) -> Result<Command, PgError> {
        match self.keyword_text().as_deref() {
            Some("timelines") => self.finish(Command::TimelineList),
            Some("timeline") => {
                let timeline = self.name("a timeline")?;
                self.finish(Command::TimelineShow { timeline })
            }
            Some("last_record_lsn") => {
                let timeline = self.optional_name()?;
                self.finish(Command::LastRecordLsn { timeline })
            }
            Some("lag") => {
                let timeline = self.optional_name()?;
                self.finish(Command::Lag { timeline })
            }
            Some("sizes") => {
                let timeline = if self.at_keyword("at") { None } else { self.optional_name()? };
                let at = self.optional("at", "an LSN")?;
                self.finish(Command::Sizes { timeline, at })
            }
            Some("lsn") => {
                let timeline = self.name("a timeline")?;
                self.then("at")?;
                let time = self.at_time()?;
                self.finish(Command::LsnAtTime { timeline, time })
            }
            Some("time") => {
                let timeline = self.name("a timeline")?;
                let at = self.optional("at", "an LSN")?;
                self.finish(Command::TimeAtLsn { timeline, at })
            }
            Some("status") => self.finish(Command::Status),
            Some("redo") => self.finish(Command::RedoStats),
            Some(name) => match self.parameter(name) {
                Some(parameter) => self.finish(Command::ShowParameter { parameter }),
                None => Err(PgError::new(
                    sqlstate::UNDEFINED_OBJECT,
                    format!("nothing to show has this name. name=`{name}`"),
                )
                .with_hint("HELP lists the commands.")),
            },
            None => Err(self.unexpected("what to show")),
        }
    }

    /// A parameter that we report; `SHOW TRANSACTION ISOLATION LEVEL` is one, too.
    fn parameter(&mut self, name: &str) -> Option<&'static (&'static str, &'static str)> {
        let mut name = name.to_owned();
        if name == "transaction" && self.at_keyword("isolation") {
            self.next = self.tokens.len();
            "transaction_isolation".clone_into(&mut name);
        }
        PARAMETERS.iter().find(|(parameter, _)| parameter.eq_ignore_ascii_case(&name))
    }

    fn timeline(&mut self) -> Result<Command, PgError> {
        match self.keyword_text().as_deref() {
            Some("list") => self.finish(Command::TimelineList),
            Some("show") => {
                let timeline = self.name("a timeline")?;
                self.finish(Command::TimelineShow { timeline })
            }
            Some("follow") => self.follow(),
            Some("unfollow") => self.unfollow(),
            Some("delete") => self.timeline_delete(),
            Some("retention") => self.retention(),
            _ => Err(self.unexpected_here("LIST, SHOW, FOLLOW, UNFOLLOW, DELETE or RETENTION")),
        }
    }

    fn import(&mut self) -> Result<Command, PgError> {
        let name = self.name("a name for the timeline")?;
        self.then("from")?;
        // A connection string is never one of these words: it has an equals sign.
        let from = if self.at_keyword("directory") || self.at_keyword("tar") {
            let is_tar = self.at_keyword("tar");
            self.next += 1;
            let path = PathBuf::from(self.name("a path in single quotes")?);
            ImportFrom::Files(if is_tar { ClusterFiles::Tar(path) } else { ClusterFiles::Directory(path) })
        } else {
            ImportFrom::Primary(Conninfo(self.name("a connection string in single quotes, DIRECTORY or TAR")?))
        };
        self.finish(Command::Import { name, from })
    }

    fn database_list(&mut self) -> Result<Command, PgError> {
        let timeline = self.name("a timeline")?;
        let at = self.optional("at", "an LSN")?;
        self.finish(Command::DatabaseList { timeline, at })
    }

    fn relation_list(&mut self) -> Result<Command, PgError> {
        let timeline = self.name("a timeline")?;
        let database = self.optional("in", "a database like 1663/5")?;
        let at = self.optional("at", "an LSN")?;
        self.finish(Command::RelationList { timeline, database, at })
    }

    fn slru_list(&mut self) -> Result<Command, PgError> {
        let timeline = self.name("a timeline")?;
        let at = self.optional("at", "an LSN")?;
        self.finish(Command::SlruList { timeline, at })
    }

    fn object_list(&mut self) -> Result<Command, PgError> {
        let timeline = self.name("a timeline")?;
        let class = self.optional("class", "a class of objects")?;
        let at = self.optional("at", "an LSN")?;
        self.finish(Command::ObjectList { timeline, class, at })
    }

    fn page(&mut self) -> Result<Command, PgError> {
        match self.keyword_text().as_deref() {
            Some("get") => {
                let timeline = self.name("a timeline")?;
                let address = self.value("the address of a page")?;
                let at = self.optional("at", "an LSN")?;
                self.finish(Command::PageGet { timeline, address, at })
            }
            Some("history") => {
                let timeline = self.name("a timeline")?;
                let address = self.value("the address of a page")?;
                let from = self.optional("from", "an LSN")?;
                let to = self.optional("to", "an LSN")?;
                self.finish(Command::PageHistory { timeline, address, from, to })
            }
            _ => Err(self.unexpected_here("GET or HISTORY")),
        }
    }

    fn pagestream(&mut self, version: Version) -> Result<Command, PgError> {
        let first = self.name("a tenant and a timeline, or a timeline")?;
        let second = self.optional_name()?;
        let (tenant, timeline) = match second {
            Some(timeline) => (Some(first), timeline),
            None => (None, first),
        };
        self.finish(Command::Pagestream { version, tenant, timeline })
    }

    fn base_backup(&mut self) -> Result<Command, PgError> {
        let mut names = vec![self.name("a tenant and a timeline, or a timeline")?];
        while names.len() < NAMES_OF_BACKUP_MAX && self.next < self.tokens.len() && !self.at_option() {
            names.push(self.name("a timeline or an LSN")?);
        }
        let (mut gzip, mut no_data, mut standby) = (false, false, false);
        while self.at_option() {
            match self.keyword_text().as_deref() {
                Some("--gzip") if !gzip => gzip = true,
                Some("--no-data") if !no_data => no_data = true,
                Some("--standby") if !standby => standby = true,
                _ => return Err(self.unexpected_here("--gzip, --no-data or --standby")),
            }
        }
        // The last of several is an LSN if it looks like one, and must be one if it is the third.
        let last_lsn = names.last().map(|last| last.parse::<Lsn>());
        let request_lsn = match (names.len(), last_lsn) {
            (2, Some(Ok(lsn))) => Some(lsn),
            (3, Some(lsn)) => {
                Some(lsn.map_err(|error| PgError::new(sqlstate::INVALID_PARAMETER_VALUE, error.to_string()))?)
            }
            _ => None,
        };
        names.truncate(names.len() - usize::from(request_lsn.is_some()));
        let timeline = names.pop().unwrap_or_default();
        let tenant = names.pop();
        self.finish(Command::BaseBackup(BackupRequest { tenant, timeline, request_lsn, gzip, no_data, standby }))
    }

    fn wal_get(&mut self) -> Result<Command, PgError> {
        let timeline = self.name("a timeline")?;
        let file = self.name("the name of a WAL file")?;
        self.finish(Command::WalGet { timeline, file })
    }

    /// What drivers ask at connect: a constant, or one of a few functions.
    fn select(&mut self) -> Result<Command, PgError> {
        let kinds: Vec<&TokenKind<'_>> = self.tokens[self.next..].iter().map(|token| &token.kind).collect();
        let item = match kinds[..] {
            [TokenKind::Text(text)] => Some(SelectItem::Text(text.clone())),
            [TokenKind::Word(word)] => word.parse().map(SelectItem::Number).ok().or_else(|| select_function(word)),
            [TokenKind::Word(word), TokenKind::Symbol('('), TokenKind::Symbol(')')] => select_function(word),
            _ => None,
        };
        item.map(|item| Command::Select { item }).ok_or_else(|| {
            PgError::new(sqlstate::FEATURE_NOT_SUPPORTED, "this is a page server: it has pages, not tables to query")
                .with_hint("HELP lists the commands. To query the data, start a PostgreSQL on a branch.")
        })
    }

    fn deallocate(&mut self) -> Result<Command, PgError> {
        if self.at_keyword("prepare") {
            self.next += 1;
        }
        let all = self.at_keyword("all");
        let name = self.name("a statement's name, or ALL")?;
        self.finish(Command::Deallocate { name: (!all).then_some(name) })
    }

    /// The next token as a keyword: an unquoted word, in lower case. Takes it.
    fn keyword_text(&mut self) -> Option<String> {
        let Some(Token { kind: TokenKind::Word(word), .. }) = self.tokens.get(self.next) else { return None };
        self.next += 1;
        Some(word.to_ascii_lowercase())
    }

    /// The next token is a word like `--gzip`.
    fn at_option(&self) -> bool {
        let kind = self.tokens.get(self.next).map(|token| &token.kind);
        matches!(kind, Some(TokenKind::Word(word)) if word.starts_with("--"))
    }

    fn at_keyword(&self, keyword: &str) -> bool {
        let kind = self.tokens.get(self.next).map(|token| &token.kind);
        matches!(kind, Some(TokenKind::Word(word)) if word.eq_ignore_ascii_case(keyword))
    }

    /// Takes this keyword, which must come now.
    fn then(&mut self, keyword: &str) -> Result<(), PgError> {
        if !self.at_keyword(keyword) {
            return Err(self.unexpected(&keyword.to_ascii_uppercase()));
        }
        self.next += 1;
        Ok(())
    }

    fn name(&mut self, what: &str) -> Result<String, PgError> {
        let name = match self.tokens.get(self.next).map(|token| &token.kind) {
            Some(TokenKind::Word(word)) => (*word).to_owned(),
            Some(TokenKind::Name(name) | TokenKind::Text(name)) if !name.is_empty() => name.clone(),
            _ => return Err(self.unexpected(what)),
        };
        self.next += 1;
        Ok(name)
    }

    fn optional_name(&mut self) -> Result<Option<String>, PgError> {
        if self.next == self.tokens.len() { Ok(None) } else { self.name("a name").map(Some) }
    }

    fn value<T: FromStr<Err: Display>>(&mut self, what: &str) -> Result<T, PgError> {
        let text = self.name(what)?;
        text.parse().map_err(|error: T::Err| PgError::new(sqlstate::INVALID_PARAMETER_VALUE, error.to_string()))
    }

    fn optional<T: FromStr<Err: Display>>(&mut self, keyword: &str, what: &str) -> Result<Option<T>, PgError> {
        if !self.at_keyword(keyword) {
            return Ok(None);
        }
        self.next += 1;
        self.value(what).map(Some)
    }

    /// What follows `AT`: `TIME 'time'`.
    fn at_time(&mut self) -> Result<TimeSpec, PgError> {
        self.then("time")?;
        self.value("a time like '2026-11-25 14:32:00'")
    }

    fn finish(&self, command: Command) -> Result<Command, PgError> {
        if self.next == self.tokens.len() { Ok(command) } else { Err(self.unexpected("the end of the command")) }
    }

    /// An error about the token that comes now.
    fn unexpected(&self, expected: &str) -> PgError {
        let found = match self.tokens.get(self.next) {
            Some(Token { kind, at }) => format!("at or near {} (position {at})", show(kind)),
            None => "at end of input".to_owned(),
        };
        let error = PgError::new(sqlstate::SYNTAX_ERROR, format!("syntax error {found}: expected {expected}"));
        error.with_hint(self.usage())
    }

    /// An error about the token that was just taken as a keyword, or about its absence.
    fn unexpected_here(&mut self, expected: &str) -> PgError {
        if matches!(self.tokens.get(self.next.wrapping_sub(1)), Some(Token { kind: TokenKind::Word(_), .. }))
            && self.next > 1
        {
            self.next -= 1;
        }
        self.unexpected(expected)
    }

    fn unknown(&self, word: &str) -> PgError {
        let known_elsewhere = ["fullbackup", "copy", "explain", "insert", "update", "delete", "create"];
        if known_elsewhere.contains(&word) {
            return PgError::new(sqlstate::FEATURE_NOT_SUPPORTED, format!("{word} is not supported yet"))
                .with_hint("HELP lists the commands.");
        }
        let word: String = word.chars().take(64).collect();
        PgError::new(sqlstate::SYNTAX_ERROR, format!("unknown command. command=`{word}`"))
            .with_hint("HELP lists the commands.")
    }

    /// The forms that begin with the same keyword.
    fn usage(&self) -> String {
        let first = match self.tokens.first() {
            Some(Token { kind: TokenKind::Word(word), .. }) => word.to_ascii_uppercase(),
            _ => String::new(),
        };
        let forms: Vec<&str> =
            FORMS.iter().map(|(form, _)| *form).filter(|form| form.split(' ').next() == Some(&first)).collect();
        if forms.is_empty() { "HELP lists the commands.".to_owned() } else { format!("Usage: {}", forms.join("; ")) }
    }
}

fn select_function(word: &str) -> Option<SelectItem> {
    let word = word.to_ascii_lowercase();
    Some(match word.strip_prefix("pg_catalog.").unwrap_or(&word) {
        "version" => SelectItem::Version,
        "pg_is_in_recovery" => SelectItem::IsInRecovery,
        "current_database" | "current_catalog" => SelectItem::Name("pageserver"),
        "current_schema" => SelectItem::Name("public"),
        "current_user" | "session_user" | "user" => SelectItem::Name("pageserver"),
        _ => return None,
    })
}

/// A token for a message. Quoted text is not repeated: it may hold a password.
fn show(kind: &TokenKind<'_>) -> String {
    match kind {
        TokenKind::Word(word) => format!("\"{}\"", word.chars().take(64).collect::<String>()),
        TokenKind::Name(name) => format!("\"{}\"", name.chars().take(64).collect::<String>()),
        TokenKind::Text(_) => "quoted text".to_owned(),
        TokenKind::Parameter => "a parameter".to_owned(),
        TokenKind::Symbol(symbol) => format!("\"{symbol}\""),
    }
}

#[cfg(test)]
#[path = "parse_tests.rs"]
mod tests;
