//! What is found out of a template's text before the engine sees it.

use std::borrow::Cow;

use minijinja::Error;

use super::Delimiters;

/// Words and signs in one tag, and `elif`s in one template: see [`too_complex`].
const TOKENS: usize = 1500;
const ELIFS: usize = 400;

/// The text as the engine is to get it, of as many lines; or the line of what is wrong with it, and what that is.
pub(super) fn checked<'a>(text: &'a str, delimiters: &Delimiters) -> Result<Cow<'a, str>, (usize, String)> {
    if let Some(at) = too_complex(text, delimiters) {
        let problem = format!("a tag has more than {TOKENS} words and signs, or there are more than {ELIFS} 'elif's");
        return Err((line(text, at), problem));
    }
    without_false_comments(text, delimiters)
}

/// From 1.
fn line(text: &str, at: usize) -> usize {
    text[..at].matches('\n').count() + 1
}

/// What may be done about text that only looks like a tag, where a syntax error is in one that prints a value.
pub(super) fn ways_out(error: &Error, text: &str, delimiters: &Delimiters) -> Option<&'static str> {
    let before = text.get(..error.range()?.start + 1)?;
    let variable = before.rfind(&*delimiters.variable.0)?;
    let in_block = before.rfind(&*delimiters.block.0).is_some_and(|block| block > variable);
    (!in_block).then_some(WAYS_OUT)
}

const WAYS_OUT: &str = "; if that is text for another program, have the file copied as it is (--template-suffix .j2 \
                        makes templates of those files alone whose names end so), or choose other signs (such as \
                        --template-delimiters '[[ ]] [% %] [# #]')";

/// The place of a tag with which the engine could overflow the stack: its compiler calls itself for each operator of a
/// chain such as `1+1+1` and for each `elif`, without a limit (1 to 3 KB each in a build for debugging).
///
/// Looks from each place where a tag could begin, without regard to comments and raw text: too strict for some odd
/// text there, but no tag escapes it.
fn too_complex(text: &str, delimiters: &Delimiters) -> Option<usize> {
    let (mut elifs, mut budget) = (0, text.len().saturating_mul(16));
    for at in 0..text.len() {
        for (is_block, (start, end)) in [(false, &delimiters.variable), (true, &delimiters.block)] {
            if !text.as_bytes()[at..].starts_with(start.as_bytes()) {
                continue;
            }
            let tag = &text[at + start.len()..];
            if is_block && tag.trim_start_matches(['-', '+']).trim_start().starts_with("elif") {
                elifs += 1;
            }
            if elifs > ELIFS || tokens(tag, end, &mut budget) > TOKENS {
                return Some(at);
            }
        }
    }
    None
}

/// Words and signs of a tag, a text in quotes as one, and less one for each comma, as what it ends is no link of a
/// chain. Counts no further than needed; what uses up the budget is too much as well.
fn tokens(tag: &str, close: &str, budget: &mut usize) -> usize {
    let (mut count, mut quote, mut word, mut escaped) = (0_usize, None, false, false);
    for (at, c) in tag.char_indices() {
        let Some(left) = budget.checked_sub(1) else { return usize::MAX };
        *budget = left;
        if let Some(end) = quote {
            if !escaped && c == end {
                quote = None;
            }
            escaped = !escaped && c == '\\';
            continue;
        }
        if tag[at..].starts_with(close) || count > TOKENS {
            break;
        }
        let in_word = c.is_alphanumeric() || c == '_';
        match c {
            ',' => count = count.saturating_sub(1),
            _ if in_word && word || c.is_whitespace() => {}
            _ => count += 1,
        }
        word = in_word;
        if matches!(c, '"' | '\'') {
            quote = Some(c);
        }
    }
    count
}

/// The kinds of tags.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Variable,
    Block,
    Comment,
}

/// The length of a shell's parameter, `${#name[@]}`, is text, and begins no comment. A comment that does not end is
/// refused, and so is one in which another begins on a later line: it would silently swallow what stands between.
fn without_false_comments<'a>(text: &'a str, delimiters: &Delimiters) -> Result<Cow<'a, str>, (usize, String)> {
    let (open, close) = &delimiters.comment;
    let (mut at, mut copied, mut out) = (0, 0, String::new());
    if !text.contains(&**open) {
        return Ok(text.into());
    }
    while let Some((start, kind)) = next_tag(text, at, delimiters) {
        let inside = start + delimiters.pair(kind).0.len();
        at = match kind {
            Kind::Comment if is_shell_length(text, start) => {
                // The engine prints the sign as it prints any other value.
                let (left, right) = &delimiters.variable;
                out.push_str(&text[copied..start]);
                for piece in [left, "\"", open, "\"", right] {
                    out.push_str(piece);
                }
                copied = inside;
                inside
            }
            Kind::Comment => {
                let first = line(text, start);
                let Some(end) = text[inside..].find(&**close) else {
                    return Err((first, format!("a comment begins here by {open}, and no {close} ends it{WAYS_OUT}")));
                };
                if let Some(other) = text[inside..inside + end].find(&**open) {
                    let second = line(text, inside + other);
                    if second > first {
                        let problem = format!(
                            "a comment begins here by {open}, and would swallow all up to the {close} that ends the one \
                             of line {second}{WAYS_OUT}"
                        );
                        return Err((first, problem));
                    }
                }
                inside + end + close.len()
            }
            Kind::Variable | Kind::Block => {
                let raw = basic_tag(&text[inside..], "raw", delimiters).filter(|_| kind == Kind::Block);
                let end = match raw {
                    Some(raw) => end_of_raw(text, inside + raw, delimiters),
                    None => end_of_tag(text, inside, &delimiters.pair(kind).1),
                };
                // The engine says what is wrong with one that does not end.
                let Some(end) = end else { break };
                end
            }
        };
    }
    if copied == 0 {
        return Ok(text.into());
    }
    out.push_str(&text[copied..]);
    Ok(out.into())
}

impl Delimiters {
    fn pair(&self, kind: Kind) -> &(String, String) {
        match kind {
            Kind::Variable => &self.variable,
            Kind::Block => &self.block,
            Kind::Comment => &self.comment,
        }
    }
}

/// The next place where a tag begins; of two signs there the longer one counts, as it does for the engine.
fn next_tag(text: &str, from: usize, delimiters: &Delimiters) -> Option<(usize, Kind)> {
    let begins = |at: usize| {
        let kinds = [Kind::Variable, Kind::Block, Kind::Comment].into_iter();
        let kinds = kinds.filter(|kind| text.as_bytes()[at..].starts_with(delimiters.pair(*kind).0.as_bytes()));
        kinds.max_by_key(|kind| delimiters.pair(*kind).0.len())
    };
    (from..text.len()).find_map(|at| Some((at, begins(at)?)))
}

/// Whether the `{#` at this place belongs to a shell's `${#name}`, `${#name[@]}`, `${#@}` or `${#}`.
fn is_shell_length(text: &str, at: usize) -> bool {
    let Some(rest) = text[at..].strip_prefix("{#").filter(|_| text[..at].ends_with('$')) else { return false };
    let name = |c: char| c.is_ascii_alphanumeric() || "_@*?$!-".contains(c);
    let rest = rest.trim_start_matches(name);
    let index = rest.strip_prefix('[').and_then(|index| {
        let (inside, rest) = index.split_once(']')?;
        (!inside.contains(['\n', '{'])).then_some(rest)
    });
    index.unwrap_or(rest).starts_with('}')
}

/// What follows a tag, as the engine finds it: not in quotes, nor in brackets.
fn end_of_tag(text: &str, from: usize, close: &str) -> Option<usize> {
    let (mut quote, mut escaped, mut depth) = (None, false, 0_i32);
    for (at, c) in text[from..].char_indices() {
        if let Some(end) = quote {
            if !escaped && c == end {
                quote = None;
            }
            escaped = !escaped && c == '\\';
            continue;
        }
        if depth == 0 && text[from + at..].starts_with(close) {
            return Some(from + at + close.len());
        }
        match c {
            '"' | '\'' => quote = Some(c),
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth -= 1,
            _ => {}
        }
    }
    None
}

/// The length of a tag's inside and its end, if it has nothing but this word.
fn basic_tag(tag: &str, word: &str, delimiters: &Delimiters) -> Option<usize> {
    let rest = tag.trim_start_matches(['-', '+']).trim_ascii_start().strip_prefix(word)?.trim_ascii_start();
    let rest = rest.strip_prefix(['-', '+']).unwrap_or(rest).strip_prefix(&*delimiters.block.1)?;
    Some(tag.len() - rest.len())
}

/// What follows the `endraw` of a `raw`.
fn end_of_raw(text: &str, from: usize, delimiters: &Delimiters) -> Option<usize> {
    let start = &*delimiters.block.0;
    text[from..].match_indices(start).find_map(|(at, _)| {
        let inside = from + at + start.len();
        Some(inside + basic_tag(&text[inside..], "endraw", delimiters)?)
    })
}
