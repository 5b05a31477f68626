//! Workloads written as SQL: `tests/workloads/*.sql`. Statements, with directives for what SQL cannot say.
//!
//! A line that begins with `--@` is a directive:
//! - `session NAME [DATABASE]`: what follows runs in that session; it is opened on first use. The first one is `main`.
//! - `close NAME`: ends a session.
//! - `requires extension NAME`: the whole script is skipped where the server does not have it; created otherwise.
//! - `version N`: the next statement is for PostgreSQL N and newer.
//! - `no backup`: the next statement waits for base backups to end, and they for it.
//!
//! Each statement is sent alone, so that VACUUM and CREATE DATABASE work. `{run}` becomes the name of this run: the
//! schema that every session of it works in (in other databases: `public`), unique on the server.

use std::collections::HashMap;

use anyhow::{Context, Result, bail};
use postgres::Client;
use rand::Rng;

use super::{Outcome, Run};

/// A parsed script.
#[derive(Debug, PartialEq, Eq)]
pub struct Script {
    extensions: Vec<String>,
    steps: Vec<Step>,
}

#[derive(Debug, PartialEq, Eq)]
struct Step {
    line_no: usize,
    action: Action,
}

#[derive(Debug, PartialEq, Eq)]
enum Action {
    Use { session: String, database: Option<String> },
    Close { session: String },
    Statement { sql: String, conditions: Conditions },
}

/// What directives say of the next statement.
#[derive(Debug, Default, PartialEq, Eq)]
struct Conditions {
    version_min: u32,
    no_backup: bool,
}

impl Script {
    /// Parses the text of a script; an error names the line.
    pub fn parse(text: &str) -> Result<Self> {
        let mut script = Script { extensions: Vec::new(), steps: Vec::new() };
        let mut conditions = Conditions::default();
        let mut statement = Statement::default();
        for (index, line) in text.lines().enumerate() {
            let line_no = index + 1;
            if statement.is_empty() && line.starts_with("--") {
                if let Some(directive) = line.strip_prefix("--@") {
                    script.directive(directive, line_no, &mut conditions).with_context(|| format!("line {line_no}"))?;
                }
                continue;
            }
            if let Some(sql) = statement.take_line(line, line_no) {
                let action = Action::Statement { sql, conditions: std::mem::take(&mut conditions) };
                script.steps.push(Step { line_no: statement.first_line_no, action });
            }
        }
        if !statement.is_empty() {
            bail!("line {}: the statement has no end", statement.first_line_no);
        }
        Ok(script)
    }

    fn directive(&mut self, directive: &str, line_no: usize, conditions: &mut Conditions) -> Result<()> {
        let words: Vec<&str> = directive.split_whitespace().collect();
        let action = match words[..] {
            ["requires", "extension", name] => {
                self.extensions.push(name.to_owned());
                return Ok(());
            }
            ["version", version] => {
                conditions.version_min = version.parse()?;
                return Ok(());
            }
            ["no", "backup"] => {
                conditions.no_backup = true;
                return Ok(());
            }
            ["session", session] => Action::Use { session: session.to_owned(), database: None },
            ["session", session, database] => {
                Action::Use { session: session.to_owned(), database: Some(database.to_owned()) }
            }
            ["close", session] => Action::Close { session: session.to_owned() },
            _ => bail!("unknown directive `{}`", directive.trim()),
        };
        self.steps.push(Step { line_no, action });
        Ok(())
    }

    /// Runs the script once.
    pub fn run(&self, run: &mut Run<'_>) -> Result<Outcome> {
        for extension in &self.extensions {
            if !run.has_extension(extension)? {
                return Ok(Outcome::Skipped(format!("the server has no extension {extension}")));
            }
        }
        let mut sessions: HashMap<String, Client> = HashMap::new();
        let mut current = "main".to_owned();
        for step in &self.steps {
            if run.target().is_stopping() {
                return Ok(Outcome::Stopped);
            }
            let no_backup = matches!(&step.action, Action::Statement { conditions, .. } if conditions.no_backup);
            let _no_backup = no_backup.then(|| run.target.keep_backups_away());
            let _busy = run.target.enter();
            let place = || format!("{}, line {}", run.workload, step.line_no);
            match &step.action {
                Action::Use { session, database } => {
                    current.clone_from(session);
                    if let Some(database) = database {
                        let client = run.connect_to(&run.fill_in(database)).with_context(place)?;
                        sessions.insert(session.clone(), client);
                    }
                }
                Action::Close { session } => {
                    let client = sessions.remove(session).context("no such session").with_context(place)?;
                    client.close().with_context(place)?;
                }
                Action::Statement { sql, conditions } => {
                    if run.version().major() < conditions.version_min {
                        continue;
                    }
                    let seed = run.rng.random_range(-1.0..1.0f64);
                    if !sessions.contains_key(&current) {
                        sessions.insert(current.clone(), run.connect(seed).with_context(place)?);
                    }
                    let client = sessions.get_mut(&current).context("the session was opened above")?;
                    client.batch_execute(&run.fill_in(sql)).with_context(place)?;
                }
            }
        }
        Ok(Outcome::Done)
    }
}

/// A statement on its way: ends with a semicolon at the end of a line, outside of quotes and dollar quotes.
#[derive(Default)]
struct Statement {
    text: String,
    first_line_no: usize,
    quote: Quote,
}

#[derive(Default, Clone, Copy, PartialEq, Eq)]
enum Quote {
    #[default]
    None,
    Single,
    Double,
    Dollar,
}

impl Statement {
    fn is_empty(&self) -> bool {
        self.text.trim().is_empty()
    }

    /// Adds a line; the whole statement if it ends it.
    fn take_line(&mut self, line: &str, line_no: usize) -> Option<String> {
        if self.is_empty() {
            self.text.clear();
            self.first_line_no = line_no;
        }
        let mut rest = line;
        while let Some(at) = rest.find(['\'', '"', '$']) {
            let (mark, width) = match rest.as_bytes()[at] {
                b'\'' => (Quote::Single, 1),
                b'"' => (Quote::Double, 1),
                _ if rest[at..].starts_with("$$") => (Quote::Dollar, 2),
                _ => (Quote::None, 1),
            };
            if self.quote == Quote::None {
                self.quote = mark;
            } else if self.quote == mark {
                self.quote = Quote::None;
            }
            rest = &rest[at + width..];
        }
        self.text.push_str(line);
        self.text.push('\n');
        let ends = self.quote == Quote::None && line.trim_end().ends_with(';');
        ends.then(|| std::mem::take(&mut self.text).trim().to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn statements(text: &str) -> Vec<String> {
        let steps = Script::parse(text).unwrap().steps;
        let sql = |step: Step| if let Action::Statement { sql, .. } = step.action { Some(sql) } else { None };
        steps.into_iter().filter_map(sql).collect()
    }

    #[test]
    fn a_statement_ends_at_the_semicolon_that_ends_a_line() {
        assert_eq!(statements("-- why\nselect 1;\nselect\n  2;\n"), ["select 1;", "select\n  2;"]);
    }

    #[test]
    fn quotes_keep_a_statement_together() {
        assert_eq!(statements("do $$ begin\n perform 1;\nend $$;\nselect 'a;\nb';").len(), 2);
        assert_eq!(statements("select 'it''s', \"a'b\";\nselect 2;").len(), 2);
    }

    #[test]
    fn refuses_what_has_no_end_and_what_it_does_not_know() {
        assert!(Script::parse("select 1").is_err());
        assert!(Script::parse("--@ sesion a\nselect 1;").unwrap_err().to_string().contains("line 1"));
    }

    #[test]
    fn conditions_count_for_one_statement() {
        let script = Script::parse("--@ version 15\nselect 1;\n--@ no backup\nselect 2;\nselect 3;").unwrap();
        let conditions = script.steps.iter().map(|step| match &step.action {
            Action::Statement { conditions, .. } => (conditions.version_min, conditions.no_backup),
            _ => panic!("statements only"),
        });
        assert_eq!(conditions.collect::<Vec<_>>(), [(15, false), (0, true), (0, false)]);
    }
}
