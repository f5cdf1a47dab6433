//! The statements of a text: a semicolon ends one, unless it stands in a quoted text or a comment.

/// In what a text is at its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Within {
    /// In a statement, or between two.
    Statement,
    /// In a text or a name, behind this quote.
    Quote(char),
    /// In a comment that ends with its line.
    Line,
    /// In a comment that ends with `*/`.
    Comment,
}

/// A text, taken apart.
#[derive(Debug, PartialEq, Eq)]
pub struct Split<'a> {
    /// What semicolons ended, without them.
    pub ended: Vec<&'a str>,
    /// What stands behind the last semicolon.
    pub rest: &'a str,
    /// In what the text is at its end.
    pub within: Within,
}

/// Takes a text apart.
pub fn split(text: &str) -> Split<'_> {
    let (mut ended, mut start, mut within) = (Vec::new(), 0, Within::Statement);
    let mut chars = text.char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        let next = chars.peek().map(|(_, c)| *c);
        match (within, c) {
            (Within::Statement, '\'' | '"') => within = Within::Quote(c),
            (Within::Statement, '-') if next == Some('-') => within = Within::Line,
            (Within::Statement, '/') if next == Some('*') => {
                chars.next();
                within = Within::Comment;
            }
            (Within::Statement, ';') => {
                ended.extend(text.get(start..at));
                start = at + 1;
            }
            (Within::Comment, '*') if next == Some('/') => {
                chars.next();
                within = Within::Statement;
            }
            (Within::Quote(quote), c) if quote == c => within = Within::Statement,
            (Within::Line, '\n') => within = Within::Statement,
            _ => {}
        }
    }
    Split { ended, rest: text.get(start..).unwrap_or_default(), within }
}

/// The statements of a text; the last need not be ended.
pub fn statements(text: &str) -> Vec<&str> {
    let Split { mut ended, rest, .. } = split(text);
    ended.push(rest);
    ended.retain(|statement| says_something(statement));
    ended
}

/// Whether there is more than comments.
pub fn says_something(statement: &str) -> bool {
    statement.lines().map(str::trim).any(|line| !line.is_empty() && !line.starts_with("--"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_semicolon_ends_a_statement_unless_it_is_quoted() {
        let text = "SELECT ';', \"a;b\" -- ; it's\n; /* ; ' */ SELECT 2;\n-- the end\n";
        assert_eq!(statements(text), ["SELECT ';', \"a;b\" -- ; it's\n", " /* ; ' */ SELECT 2"]);
        assert!(statements(" ;; \n-- nothing").is_empty());
        assert_eq!(statements("SELECT 'it''s; so'"), ["SELECT 'it''s; so'"]);
    }

    #[test]
    fn what_is_open_at_the_end_is_known() {
        let within = |text| split(text).within;
        assert_eq!((within("SELECT 1; SELECT 'a"), within("SELECT \"a")), (Within::Quote('\''), Within::Quote('"')));
        assert_eq!((within("SELECT -- a"), within("SELECT -- a\n")), (Within::Line, Within::Statement));
        assert_eq!((within("/* a */ /* b"), within("/* a */")), (Within::Comment, Within::Statement));
        assert_eq!(split("a; b").rest, " b");
    }
}
