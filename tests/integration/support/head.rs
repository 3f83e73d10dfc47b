//! The head of a message, as servers and relays of the tests read it.

use std::io::{self, BufRead};

/// Up to its empty line, and how long the body is that it announces; `None`: the connection ended.
pub fn head(reader: &mut impl BufRead) -> io::Result<Option<(String, Option<u64>)>> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head)? == 0 {
            return Ok(None);
        }
    }
    let length = header(&head, "content-length").map(|length| length.parse().unwrap());
    Ok(Some((head, length)))
}

/// The value of a header.
pub fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let mut lines = head.lines().filter_map(|line| line.split_once(':'));
    lines.find(|(own, _)| own.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
}
