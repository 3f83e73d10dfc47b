//! Tables for people, printed whether the test passes or fails.

use std::fmt::Write as _;
use std::io::Write as _;

/// The first row is the head. Past libtest, which shows what a test prints only when it fails.
pub fn print(title: &str, rows: &[Vec<String>]) {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let mut text = format!("\n{title}\n");
    for row in rows {
        for (column, cell) in row.iter().enumerate() {
            let room = width(column);
            let _ = if column == 0 { write!(text, "{cell:room$}") } else { write!(text, "  {cell:>room$}") };
        }
        text += "\n";
    }
    let _ = std::io::stdout().lock().write_all(text.as_bytes());
}
