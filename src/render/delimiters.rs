//! `--template-delimiters`: the signs that set a tag apart from text.

use std::str::FromStr;

use minijinja::syntax::{SyntaxConfig, SyntaxConfigBuilder};

/// Start and end of each kind of tag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delimiters {
    pub(super) variable: Pair,
    pub(super) block: Pair,
    pub(super) comment: Pair,
}

/// Start and end.
pub(super) type Pair = (String, String);

/// The flag's value is not of its form.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DelimitersError {
    #[error(
        "expected 2, 4 or 6 signs with blanks between: for values, then blocks, then comments, as in '[[ ]] [% %] [# #]'"
    )]
    Count,
    #[error("{0:?} is not two or more characters out of < > [ ] {{ }} ( ) % # $ @ ! ? & * = ~ ^ | / : ;")]
    Sign(String),
    #[error("two tags would begin with {0:?}: each kind needs a sign of its own")]
    Twice(String),
}

impl Default for Delimiters {
    fn default() -> Self {
        let pair = |start: &str, end: &str| (start.to_owned(), end.to_owned());
        Self { variable: pair("{{", "}}"), block: pair("{%", "%}"), comment: pair("{#", "#}") }
    }
}

impl FromStr for Delimiters {
    type Err = DelimitersError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let signs: Vec<_> = text.split_whitespace().collect();
        if !matches!(signs.len(), 2 | 4 | 6) {
            return Err(DelimitersError::Count);
        }
        // Letters, digits, quotes, '-' and '+' mean something inside a tag.
        let fits = |sign: &&&str| sign.len() > 1 && sign.chars().all(|c| "<>[]{}()%#$@!?&*=~^|/:;".contains(c));
        if let Some(odd) = signs.iter().find(|sign| !fits(sign)) {
            return Err(DelimitersError::Sign((*odd).to_owned()));
        }
        let mut delimiters = Self::default();
        let kinds = [&mut delimiters.variable, &mut delimiters.block, &mut delimiters.comment];
        for (pair, signs) in kinds.into_iter().zip(signs.chunks_exact(2)) {
            *pair = (signs[0].to_owned(), signs[1].to_owned());
        }
        let starts = [&delimiters.variable.0, &delimiters.block.0, &delimiters.comment.0];
        if let Some(twice) = (1..starts.len()).find(|index| starts[..*index].contains(&starts[*index])) {
            return Err(DelimitersError::Twice(starts[twice].clone()));
        }
        Ok(delimiters)
    }
}

impl Delimiters {
    /// The engine's own form. The line break at a template's end stays.
    pub(super) fn syntax(&self) -> SyntaxConfig {
        let mut builder: SyntaxConfigBuilder = SyntaxConfig::builder();
        builder.keep_trailing_newline(true);
        // The defaults are searched for faster.
        if *self != Self::default() {
            builder
                .variable_delimiters(self.variable.0.clone(), self.variable.1.clone())
                .block_delimiters(self.block.0.clone(), self.block.1.clone())
                .comment_delimiters(self.comment.0.clone(), self.comment.1.clone());
        }
        builder.build().expect("none is empty, and no two start alike")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signs_are_checked_when_they_are_read() {
        let pair = |start: &str, end: &str| (start.to_owned(), end.to_owned());
        let some: Delimiters = "[[ ]]".parse().unwrap();
        assert_eq!(some, Delimiters { variable: pair("[[", "]]"), ..Delimiters::default() });
        let all: Delimiters = " <% %>  <%% %%> <# #> ".parse().unwrap();
        assert_eq!((all.block, all.comment), (pair("<%%", "%%>"), pair("<#", "#>")));
        for (bad, words) in [
            ("", "expected 2, 4 or 6"),
            ("[[", "expected 2, 4 or 6"),
            ("[[ ]] [%", "expected 2, 4 or 6"),
            ("[ ]", "two or more characters"),
            ("[[ aa", "two or more characters"),
            ("'' ''", "two or more characters"),
            ("{{- }}", "two or more characters"),
            ("[[ ]] [[ %]", "begin with \"[[\""),
            ("{% %}", "begin with \"{%\""),
        ] {
            let error = bad.parse::<Delimiters>().unwrap_err().to_string();
            assert!(error.contains(words), "{bad}: {error}");
        }
    }
}
