//! Times for people: how long ago, beside the time itself; and texts that cannot steer a terminal or a page.

use jiff::Timestamp;

/// `12 s ago`.
#[must_use]
pub fn ago(at: Timestamp, now: Timestamp) -> String {
    let seconds = now.as_second().saturating_sub(at.as_second());
    match seconds {
        ..=1 => "just now".to_owned(),
        2..120 => format!("{seconds} s ago"),
        120..7200 => format!("{} min ago", seconds / 60),
        7200..172_800 => format!("{} h ago", seconds / 3600),
        _ => format!("{} days ago", seconds / 86_400),
    }
}

/// `3 ms`, `1.2 s`.
#[must_use]
pub fn took(millis: u64) -> String {
    match millis {
        ..1000 => format!("{millis} ms"),
        1000..120_000 => format!("{}.{} s", millis / 1000, millis % 1000 / 100),
        _ => format!("{} min", millis / 60_000),
    }
}

/// The character as it may be shown: none that steers a terminal or reorders text.
#[must_use]
pub fn shown(c: char) -> char {
    match c {
        '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => char::REPLACEMENT_CHARACTER,
        c if c.is_control() => ' ',
        c => c,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_in_the_unit_that_fits() {
        let now = Timestamp::from_second(1_000_000).unwrap();
        for (seconds, said) in [
            (-5, "just now"),
            (1, "just now"),
            (2, "2 s ago"),
            (119, "119 s ago"),
            (120, "2 min ago"),
            (7200, "2 h ago"),
            (172_800, "2 days ago"),
        ] {
            assert_eq!(ago(Timestamp::from_second(1_000_000 - seconds).unwrap(), now), said);
        }
        for (millis, said) in [(0, "0 ms"), (999, "999 ms"), (1250, "1.2 s"), (120_000, "2 min")] {
            assert_eq!(took(millis), said);
        }
    }
}
