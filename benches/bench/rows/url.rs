//! Rows on what is behind a URL.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use std::{io, thread};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::api::Watcher;
use super::{Bench, setting};
use crate::measure::{Samples, milliseconds, now};
use crate::notified::Acceptor;
use crate::programs::Who;
use crate::report::{Cell, Figure};

/// Files of a bundle, and how long each is, in bytes.
const FILES: usize = 5;
const LENGTH: usize = 10_000_000;
/// The file that has the version.
const FIRST: &str = "list0";
/// Threads for blocking work end after ten seconds.
pub(super) const REST: Duration = Duration::from_secs(12);

/// A bundle behind a URL, with an `ETag` for each version.
struct Server {
    acceptor: Acceptor,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    /// A tar archive, and its version.
    bundle: Mutex<(u32, Arc<Vec<u8>>)>,
    /// Requests without a new content as their answer, and the bytes of both.
    idle: AtomicU32,
    bytes: AtomicU64,
}

impl Server {
    fn start() -> Result<Self> {
        let shared = Arc::<Shared>::default();
        let serving = Arc::clone(&shared);
        let acceptor = Acceptor::start(move |stream| serving.serve(stream))?;
        Ok(Self { acceptor, shared })
    }

    fn url(&self) -> String {
        format!("http://{}/lists.tar", self.acceptor.address)
    }

    /// The bytes of each poll of what does not change, both ways, and the CPU ticks of all.
    fn idle_polls(&self, bench: &Bench, url: &str, environment: &[(&str, &str)], polls: u32) -> Result<[String; 2]> {
        let flags = ["--watch-url", url, "--url-poll", "1s"];
        let watcher = Watcher::start_with(&bench.trimtab, &bench.memory, environment, &flags, FIRST)?;
        watcher.first_call()?;
        let counts = || (self.shared.idle.load(Ordering::SeqCst), self.shared.bytes.load(Ordering::SeqCst));
        let (begin, ticks) = (counts(), watcher.proc().ticks()?);
        while counts().0 < begin.0 + polls {
            thread::sleep(Duration::from_millis(50));
        }
        let (end, ticks) = (counts(), watcher.proc().ticks()? - ticks);
        let polls = end.0 - begin.0;
        Ok([format!("{} B", (end.1 - begin.1) / u64::from(polls)), format!("{ticks} in {polls}")])
    }

    fn put(&self, version: u32) -> Result<()> {
        let mut tar = tar::Builder::new(Vec::with_capacity(FILES * LENGTH + (1 << 20)));
        for file in 0..FILES {
            let mut bytes = format!("{version} {file} ").into_bytes();
            bytes.resize(LENGTH, b'x');
            let mut header = tar::Header::new_gnu();
            header.set_size(LENGTH as u64);
            header.set_mode(0o644);
            tar.append_data(&mut header, format!("list{file}"), bytes.as_slice())?;
        }
        *self.shared.bundle.lock().unwrap_or_else(PoisonError::into_inner) = (version, Arc::new(tar.into_inner()?));
        Ok(())
    }
}

impl Shared {
    fn serve(&self, mut stream: &TcpStream) -> io::Result<()> {
        let mut reader = BufReader::new(stream);
        loop {
            let (mut read, mut line, mut known) = (0, String::new(), None);
            loop {
                line.clear();
                match reader.read_line(&mut line)? {
                    0 => return Ok(()),
                    length => read += length,
                }
                if line.trim().is_empty() {
                    break;
                }
                let lower = line.to_ascii_lowercase();
                known = known.or_else(|| lower.strip_prefix("if-none-match:").map(|tag| tag.trim().to_owned()));
            }
            let (version, bundle) = self.bundle.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let tag = format!("\"{version}\"");
            if known.as_ref() == Some(&tag) {
                let answer = format!("HTTP/1.1 304 Not Modified\r\nETag: {tag}\r\n\r\n");
                stream.write_all(answer.as_bytes())?;
                self.idle.fetch_add(1, Ordering::SeqCst);
                self.bytes.fetch_add((read + answer.len()) as u64, Ordering::SeqCst);
            } else {
                let head = format!("HTTP/1.1 200 OK\r\nETag: {tag}\r\nContent-Length: {}\r\n\r\n", bundle.len());
                stream.write_all(head.as_bytes())?;
                stream.write_all(&bundle)?;
            }
        }
    }
}

/// A bundle of 50 MB: a change, its memory, and polls without one.
pub fn url(bench: &Bench) -> Result<Vec<Figure>> {
    let rounds: u32 = setting("BUNDLES", 10)?;
    let polls: u32 = setting("POLLS", 20)?;
    let server = Server::start()?;
    server.put(1)?;
    let (mut by_trimtab, mut by_curl) = (Vec::new(), Vec::new());
    let watcher = Watcher::start(
        &bench.trimtab,
        &bench.memory,
        &["--watch-url", &server.url(), "--url-poll", "1h", "--debounce", "0"],
        FIRST,
    )?;
    ensure!(watcher.first_call()?.saw == Some(1), "another version was published");
    let by_hand = tempfile::Builder::new().prefix("bench-").tempdir_in(&bench.memory)?;
    for version in 2..rounds + 2 {
        server.put(version)?;
        let began = now();
        kill(Pid::from_raw(watcher.proc().0.cast_signed()), Signal::SIGHUP)?;
        let call = loop {
            let call = watcher.first_call()?;
            if call.saw == Some(version) {
                break call;
            }
        };
        by_trimtab.push(milliseconds(began, call.at));
        by_curl.push(fetched_by_hand(&server.url(), by_hand.path())?);
    }
    thread::sleep(REST);
    let [resident, _] = watcher.proc().memory()?;
    drop(watcher);

    let plain = server.idle_polls(bench, &server.url(), &[], polls)?;
    let endpoint = format!("http://{}", server.acceptor.address);
    let keys = [
        ("AWS_ENDPOINT_URL", &*endpoint),
        ("AWS_ACCESS_KEY_ID", "AKIDOFTHEBENCH"),
        ("AWS_SECRET_ACCESS_KEY", "secret"),
    ];
    let signed = server.idle_polls(bench, "s3://bucket/lists.tar", &keys, polls)?;
    let change = format!("a bundle of {} MB changes → hook", FILES * LENGTH / 1_000_000);
    let figure = Figure::new("url", change).main().cell(Who::Trimtab, Cell::times(&Samples::new(&by_trimtab)));
    let [poll, of_a_store, memory, by_hand] = [
        "a poll of what has not changed: bytes, both ways",
        "a signed one of an object store's, whose answer has no more headers than that",
        "resident at rest with it",
        "the same by curl, tar and mv",
    ];
    Ok(vec![
        figure,
        Figure::new("url", by_hand).cell(Who::Floor, Cell::times(&Samples::new(&by_curl))),
        Figure::new("url", memory).cell(Who::Trimtab, Cell::bytes(resident)),
        Figure::new("url", poll).cell(Who::Trimtab, Cell::text(&plain[0])),
        Figure::new("url", "CPU ticks of 10 ms in so many").cell(Who::Trimtab, Cell::text(&plain[1])),
        Figure::new("url", of_a_store).cell(Who::Trimtab, Cell::text(&signed[0])),
        Figure::new("url", "CPU ticks of 10 ms in so many of these").cell(Who::Trimtab, Cell::text(&signed[1])),
    ])
}

/// What people have beside a main process: milliseconds.
fn fetched_by_hand(url: &str, below: &Path) -> Result<f64> {
    const SCRIPT: &str = "rm -rf old new; mkdir new; curl -sSf -o new.tar \"$1\"; tar -xf new.tar -C new; \
                          if [ -e live ]; then mv live old; fi; mv new live";
    let began = now();
    let status = Command::new("sh").args(["-ec", SCRIPT, "-", url]).current_dir(below).status().context("no sh")?;
    ensure!(status.success(), "curl, tar or mv failed");
    Ok(milliseconds(began, now()))
}
