//! Cuts command text into tokens, and tokens into statements.
//!
//! ```text
//! word       letters, digits and _ . / + - : @ % and anything beyond ASCII: main, 0/16B5A50, 1663/5/16384/main/0, --gzip
//! 'text'     anything; a quote within is written twice
//! "name"     the same with double quotes: a name that is never a keyword
//! $1         a parameter (which no command takes)
//! symbol     any other ASCII character
//! ;          ends a statement
//! /* */      comment, may nest; -- followed by a space or a line end: comment to the end of the line
//! ```

/// A token and where it begins, in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token<'a> {
    /// What it is.
    pub kind: TokenKind<'a>,
    /// Offset in the text, for messages.
    pub at: usize,
}

/// What a token is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TokenKind<'a> {
    /// Not quoted: a keyword, a name, a number, an LSN, an address.
    Word(&'a str),
    /// In double quotes.
    Name(String),
    /// In single quotes.
    Text(String),
    /// `$` and a number.
    Parameter,
    /// Any other character.
    Symbol(char),
}

/// The text cannot be cut into tokens.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// A quote that is not closed.
    #[error("unterminated quoted string at position {at}")]
    UnterminatedQuote {
        /// Where it begins.
        at: usize,
    },
    /// A comment that is not closed.
    #[error("unterminated comment at position {at}")]
    UnterminatedComment {
        /// Where it begins.
        at: usize,
    },
}

/// The statements of `text`, each as its tokens; empty ones are left out.
pub fn statements(text: &str) -> Result<Vec<Vec<Token<'_>>>, TokenError> {
    let mut statements = vec![Vec::new()];
    let mut scanner = Scanner { text, at: 0 };
    while let Some(token) = scanner.next_token()? {
        match (token.kind == TokenKind::Symbol(';'), statements.last_mut()) {
            (false, Some(statement)) => statement.push(token),
            _ => statements.push(Vec::new()),
        }
    }
    statements.retain(|statement| !statement.is_empty());
    Ok(statements)
}

struct Scanner<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Scanner<'a> {
    fn rest(&self) -> &'a str {
        self.text.get(self.at..).unwrap_or("")
    }

    fn next_token(&mut self) -> Result<Option<Token<'a>>, TokenError> {
        self.skip_blank()?;
        let at = self.at;
        let rest = self.rest();
        let Some(first) = rest.chars().next() else { return Ok(None) };
        let kind = match first {
            '\'' => TokenKind::Text(self.quoted('\'')?),
            '"' => TokenKind::Name(self.quoted('"')?),
            '$' => {
                self.at += 1;
                self.word();
                TokenKind::Parameter
            }
            _ if is_word(first) => TokenKind::Word(self.word()),
            _ => {
                self.at += first.len_utf8();
                TokenKind::Symbol(first)
            }
        };
        Ok(Some(Token { kind, at }))
    }

    fn skip_blank(&mut self) -> Result<(), TokenError> {
        loop {
            let rest = self.rest();
            let trimmed = rest.trim_start();
            self.at += rest.len() - trimmed.len();
            if trimmed.starts_with("/*") {
                self.skip_comment()?;
            } else if is_line_comment(trimmed) {
                self.at += trimmed.find('\n').unwrap_or(trimmed.len());
            } else {
                return Ok(());
            }
        }
    }

    fn skip_comment(&mut self) -> Result<(), TokenError> {
        let start = self.at;
        let mut depth = 0_usize;
        loop {
            let rest = self.rest();
            if rest.starts_with("/*") {
                depth += 1;
                self.at += 2;
            } else if rest.starts_with("*/") {
                depth -= 1; // Never below: the loop begins at "/*" and ends at 0.
                self.at += 2;
                if depth == 0 {
                    return Ok(());
                }
            } else {
                let Some(next) = rest.chars().next() else {
                    return Err(TokenError::UnterminatedComment { at: start });
                };
                self.at += next.len_utf8();
            }
        }
    }

    fn word(&mut self) -> &'a str {
        let rest = self.rest();
        let len = rest
            .char_indices()
            // A word ends where a comment begins: `main/*...*/`.
            .find(|(i, c)| !is_word(*c) || rest.get(*i..).is_some_and(|tail| tail.starts_with("/*")))
            .map_or(rest.len(), |(i, _)| i);
        self.at += len;
        rest.get(..len).unwrap_or("")
    }

    fn quoted(&mut self, quote: char) -> Result<String, TokenError> {
        let start = self.at;
        self.at += 1;
        let mut value = String::new();
        loop {
            let rest = self.rest();
            let Some(end) = rest.find(quote) else { return Err(TokenError::UnterminatedQuote { at: start }) };
            value.push_str(rest.get(..end).unwrap_or(""));
            self.at += end + 1;
            if !self.rest().starts_with(quote) {
                return Ok(value);
            }
            value.push(quote);
            self.at += 1;
        }
    }
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || "_./+-:@%".contains(c) || (!c.is_ascii() && !c.is_whitespace())
}

fn is_line_comment(text: &str) -> bool {
    text.strip_prefix("--").is_some_and(|rest| rest.is_empty() || rest.starts_with(char::is_whitespace))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One line per statement: `w:` word, `n:` name, `t:` text, `$`, `s:` symbol.
    fn check(text: &str, expect: &[&str]) {
        let show = |token: &Token<'_>| match &token.kind {
            TokenKind::Word(word) => format!("w:{word}"),
            TokenKind::Name(name) => format!("n:{name}"),
            TokenKind::Text(text) => format!("t:{text}"),
            TokenKind::Parameter => "$".to_owned(),
            TokenKind::Symbol(symbol) => format!("s:{symbol}"),
        };
        let found: Vec<String> = statements(text)
            .expect("tokens")
            .iter()
            .map(|statement| statement.iter().map(show).collect::<Vec<_>>().join(" "))
            .collect();
        assert_eq!(found, expect, "{text}");
    }

    #[test]
    fn tokens() {
        check("", &[]);
        check(" ; ;\n", &[]);
        check("show timelines", &["w:show w:timelines"]);
        check("a;b ; c", &["w:a", "w:b", "w:c"]);
        check("import x from 'host=a user=''b'''", &["w:import w:x w:from t:host=a user='b'"]);
        check("\"My \"\"name\"\"\" ';'", &["n:My \"name\" t:;"]);
        check("page get m 1663/5/1/main/7 at 0/1A", &["w:page w:get w:m w:1663/5/1/main/7 w:at w:0/1A"]);
        check("basebackup a b latest --gzip", &["w:basebackup w:a w:b w:latest w:--gzip"]);
        check("a -- comment; b\nc --", &["w:a w:c"]);
        check("a/* x /* y */ ; */b", &["w:a w:b"]);
        check("set x = $1, y", &["w:set w:x s:= $ s:, w:y"]);
        check("ä日本 €", &["w:ä日本 w:€"]);
        check("select 1", &["w:select w:1"]);
    }

    #[test]
    fn unterminated() {
        assert_eq!(statements("a 'b"), Err(TokenError::UnterminatedQuote { at: 2 }));
        assert_eq!(statements("a \"b''"), Err(TokenError::UnterminatedQuote { at: 2 }));
        assert_eq!(statements("a /* /* */"), Err(TokenError::UnterminatedComment { at: 2 }));
    }
}
