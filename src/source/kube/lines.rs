//! The lines of a watch's body: one event each.

use std::time::Duration;

use bytes::{Bytes, BytesMut};

use super::client::Answer;
use super::failure::Failure;
use super::watch::PAGE_LIMIT;

pub(super) struct Lines {
    answer: Answer,
    patience: Duration,
    buffer: BytesMut,
    /// How much of the buffer is known to hold no line end.
    searched: usize,
}

impl Lines {
    pub(super) fn new(answer: Answer, patience: Duration) -> Self {
        Self { answer, patience, buffer: BytesMut::new(), searched: 0 }
    }

    /// The next line; `None` at the end of the body. A last line without its end is dropped: it is cut off.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, Failure> {
        loop {
            if let Some(end) = self.buffer[self.searched..].iter().position(|byte| *byte == b'\n') {
                let line = self.buffer.split_to(self.searched + end + 1);
                self.searched = 0;
                return Ok(Some(line.freeze()));
            }
            self.searched = self.buffer.len();
            if self.buffer.is_empty() {
                // A quiet watch holds no memory for the largest event that it has seen.
                self.buffer = BytesMut::new();
            }
            let Some(chunk) = self.answer.chunk(self.patience).await? else { return Ok(None) };
            if self.buffer.len() + chunk.len() > PAGE_LIMIT {
                return Err(Failure::PageTooLarge);
            }
            self.buffer.extend_from_slice(&chunk);
        }
    }
}
